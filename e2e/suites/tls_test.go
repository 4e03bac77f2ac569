package suites

import (
	"path/filepath"
	"strings"
	"testing"
)

// selfSigned makes a key and a certificate for a name.
func selfSigned(t *testing.T, name string) (key, certificate string) {
	t.Helper()
	dir := t.TempDir()
	key, certificate = filepath.Join(dir, "key.pem"), filepath.Join(dir, "certificate.pem")
	run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
		"-keyout", key, "-out", certificate, "-subj", "/CN="+name, "-addext", "subjectAltName=DNS:"+name)
	return key, certificate
}

// The application's own TLS passes untouched: the client verifies the server, not a proxy, and the server still sees the name.
func TestOpenSSL(t *testing.T) {
	key, certificate := selfSigned(t, "shop.test")
	otherKey, otherCertificate := selfSigned(t, "other.test")
	server := free(t)
	start(t, server, "openssl", "s_server", "-accept", server, "-www", "-key", key, "-cert", certificate,
		"-servername", "other.test", "-key2", otherKey, "-cert2", otherCertificate)
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			for name, ca := range map[string]string{"shop.test": certificate, "other.test": otherCertificate} {
				t.Run(way+"/"+name+version, func(t *testing.T) {
					out, err := attempt(t, "GET / HTTP/1.0\r\n\r\n", "openssl", "s_client", "-connect", at, "-servername", name,
						"-verify_hostname", name, "-CAfile", ca, "-verify_return_error", "-ign_eof", version)
					if err != nil || !strings.Contains(out, "Verify return code: 0 (ok)") || !strings.Contains(out, "HTTP/1.0 200 ok") {
						t.Errorf("%v: %s", err, out)
					}
				})
			}
		}
		t.Run(way+"/curl", func(t *testing.T) {
			out := run(t, "curl", "-sS", "--max-time", "20", "--cacert", certificate, "--connect-to", "::"+at, "https://shop.test/")
			if !strings.Contains(out, "s_server") {
				t.Error(out)
			}
		})
	}
}
