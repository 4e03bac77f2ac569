// Runs programs that others wrote against proxies of this build, on loopback: conformance suites, real servers, real
// clients. Each test starts its own server, puts proxies in front of it (`through`, an example of the proxy's crate), and
// runs the program against those. Nothing here needs a cluster, and everything ends with its test.
package suites

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Where a client can connect to, by the way to the server.
type ways map[string]string

// behind starts proxies before server, one set for each way: mesh (two proxies and mTLS), outbound and inbound (one). After a
// slash may stand what the configuration says that the port speaks.
func behind(t *testing.T, server string, kinds ...string) ways {
	t.Helper()
	program := os.Getenv("WEFT_THROUGH")
	if program == "" {
		t.Fatal("WEFT_THROUGH names no program: run `make suites`, which builds proxy/examples/through.rs")
	}
	var args []string
	for _, kind := range kinds {
		way, protocol, _ := strings.Cut(kind, "/")
		args = append(args, fmt.Sprintf("%s:%s/%s=%s", way, kind, cmp.Or(protocol, "detect"), server))
	}
	cmd := exec.Command(program, args...)
	cmd.Stderr = os.Stderr
	// It ends when this is closed, so also when the tests are killed.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the proxies ended with %v", err)
		}
	})
	at := ways{}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && lines.Text() != "ready" {
		name, address, _ := strings.Cut(lines.Text(), " ")
		at[name] = address
	}
	if len(at) != len(kinds) {
		t.Fatalf("the proxies did not start: %v", at)
	}
	return at
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// free is an address on loopback that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// listen is for a server inside of the test.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serve answers HTTP/1, HTTP/2, or both, until the test ends.
func serve(t *testing.T, http1, http2 bool, handler http.HandlerFunc) string {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(http1)
	protocols.SetUnencryptedHTTP2(http2)
	l := listen(t)
	server := &http.Server{Protocols: protocols, Handler: handler}
	go server.Serve(lingering{l})
	t.Cleanup(func() { server.Close() })
	return l.Addr().String()
}

// start runs a server program until the test ends, and waits until it takes connections at address.
func start(t *testing.T, address string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(found(t, name), args...)
	said := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		// The group: servers fork. Some heed only the one, and PostgreSQL waits for its clients with only the other.
		syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
		if t.Failed() {
			t.Logf("%s said: %s", name, said)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended at once: %s", name, said)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen on %s: %s", name, address, said)
		}
	}
}

// run runs a client program to its end; its output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := attempt(t, "", name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// attempt is run for what may fail, with standard input.
func attempt(t *testing.T, stdin, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, found(t, name), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func found(t *testing.T, name string) string {
	t.Helper()
	if filepath.IsAbs(name) {
		return name
	}
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	for _, dir := range append(append(dirs, "/usr/sbin"), filepath.SplitList(os.Getenv("PATH"))...) {
		if path := filepath.Join(dir, name); executable(path) {
			return path
		}
	}
	t.Fatalf("%s is missing: `make suites` installs what the suites need", name)
	return ""
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}

// tool is a program of a module in go.mod; built when it is not in Go's cache.
func tool(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("go", "tool", "-n", path).Output()
	if err != nil {
		t.Fatalf("go tool -n %s: %v", path, err)
	}
	return strings.TrimSpace(string(out))
}

// echo answers with the body.
func echo(w http.ResponseWriter, r *http.Request) {
	io.Copy(w, r.Body)
}
