// What the operator gives workloads, judged by OpenSSL and by SPIFFE's own library: both take it, for client and server, as the
// identity that was asked for, and neither takes it under another root.
package suites

import (
	"crypto/tls"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// A folder with root.pem, chain.pem and key.pem, made by the operator's own code.
func issued(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	program := filepath.Join(filepath.Dir(os.Getenv("WEFT_THROUGH")), "svid")
	if said, err := exec.Command(program, folder).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, said)
	}
	return folder
}

func TestSVIDByOpenSSL(t *testing.T) {
	mine, other := issued(t), issued(t)
	chain := filepath.Join(mine, "chain.pem")
	for _, purpose := range []string{"sslclient", "sslserver"} {
		verify := func(root string) (string, error) {
			said, err := exec.Command("openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", root, chain).CombinedOutput()
			return string(said), err
		}
		if said, err := verify(filepath.Join(mine, "root.pem")); err != nil || !strings.Contains(said, ": OK") {
			t.Errorf("%s: %v\n%s", purpose, err, said)
		}
		if said, err := verify(filepath.Join(other, "root.pem")); err == nil {
			t.Errorf("%s: taken under another root\n%s", purpose, said)
		}
	}
}

func TestSVIDByGoSPIFFE(t *testing.T) {
	mine, other := issued(t), issued(t)
	domain := spiffeid.RequireTrustDomainFromString("cluster.local")
	svid, err := x509svid.Load(filepath.Join(mine, "chain.pem"), filepath.Join(mine, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "spiffe://cluster.local/ns/shop/sa/back"; svid.ID.String() != want {
		t.Errorf("it is %s, not %s", svid.ID, want)
	}
	for folder, good := range map[string]bool{mine: true, other: false} {
		bundle, err := x509bundle.Load(domain, filepath.Join(folder, "root.pem"))
		if err != nil {
			t.Fatal(err)
		}
		id, _, err := x509svid.Verify(svid.Certificates, bundle)
		if good != (err == nil) || good && id != svid.ID {
			t.Errorf("good: %v, but it says %v, %v", good, id, err)
		}
	}
	// Its key is the certificate's.
	if _, err := tls.LoadX509KeyPair(filepath.Join(mine, "chain.pem"), filepath.Join(mine, "key.pem")); err != nil {
		t.Error(err)
	}
}

// What other meshes are given, while the root is rotated: SPIFFE's own reader takes it, and verifies by it what the signing root has
// signed, of our trust domain only.
func TestBundleByGoSPIFFE(t *testing.T) {
	folder := issued(t)
	domain := spiffeid.RequireTrustDomainFromString("cluster.local")
	bundle, err := spiffebundle.Load(domain, filepath.Join(folder, "bundle.json"))
	if err != nil {
		t.Fatal(err)
	}
	if roots := bundle.X509Authorities(); len(roots) != 2 || !roots[0].IsCA {
		t.Errorf("%d roots, not the signing and the next one", len(roots))
	}
	if sequence, there := bundle.SequenceNumber(); !there || sequence < 1_000_000_000_000 {
		t.Errorf("sequence %d", sequence)
	}
	if hint, there := bundle.RefreshHint(); !there || hint != 24*time.Hour {
		t.Errorf("refresh hint %v", hint)
	}
	svid, err := x509svid.Load(filepath.Join(folder, "chain.pem"), filepath.Join(folder, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if id, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil || id != svid.ID {
		t.Errorf("%v, %v", id, err)
	}
	other, err := spiffebundle.Load(spiffeid.RequireTrustDomainFromString("partner.example"), filepath.Join(folder, "bundle.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, other); err == nil {
		t.Error("taken under the bundle of another trust domain")
	}
}
