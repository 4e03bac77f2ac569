package suites

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// nginx serves a directory, and takes uploads into it.
func nginx(t *testing.T) (address, dir string) {
	t.Helper()
	dir, address = shared(t), free(t)
	big := make([]byte, 3_000_000)
	for n := range big {
		big[n] = byte(n % 251)
	}
	write(t, filepath.Join(dir, "big"), big)
	write(t, filepath.Join(dir, "small"), []byte(strings.Repeat("hello ", 100)))
	conf := filepath.Join(dir, "nginx.conf")
	write(t, conf, fmt.Appendf(nil, `daemon off; pid %[1]s/pid; error_log stderr; worker_processes 1;
events {}
http {
  access_log off; keepalive_requests 1000000; client_max_body_size 10m; gzip on; gzip_types *;
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server {
    listen %[2]s; root %[1]s; dav_methods PUT;
    location /moved { return 302 /small; }
  }
}`, dir, address))
	start(t, address, "nginx", "-c", conf, "-p", dir)
	return address, dir
}

// shared is a directory that servers can write to under users of their own.
func shared(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for at := dir; at != filepath.Dir(at) && at != os.TempDir(); at = filepath.Dir(at) {
		os.Chmod(at, 0o777)
	}
	return dir
}

func write(t *testing.T, path string, bytes []byte) {
	t.Helper()
	if err := os.WriteFile(path, bytes, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCurl(t *testing.T) {
	server, dir := nginx(t)
	big, _ := os.ReadFile(filepath.Join(dir, "big"))
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		base := "http://" + at
		out := filepath.Join(t.TempDir(), "out")
		// curl fetches path with these arguments, and says what `-w` asks for.
		curl := func(t *testing.T, path, wanted string, args ...string) string {
			t.Helper()
			os.Remove(out)
			return run(t, "curl", append([]string{"-sS", "--max-time", "20", "-o", out, "-w", wanted, base + path}, args...)...)
		}
		same := func(t *testing.T, wanted []byte) {
			t.Helper()
			if got, _ := os.ReadFile(out); !bytes.Equal(got, wanted) {
				t.Errorf("%d bytes, %d wanted", len(got), len(wanted))
			}
		}
		is := func(t *testing.T, got, wanted string) {
			t.Helper()
			if got != wanted {
				t.Errorf("%q, not %q", got, wanted)
			}
		}
		t.Run(way+"/1.1", func(t *testing.T) {
			is(t, curl(t, "/big", "%{http_code} %{http_version}"), "200 1.1")
			same(t, big)
		})
		t.Run(way+"/1.0", func(t *testing.T) {
			is(t, curl(t, "/big", "%{http_code}", "--http1.0"), "200")
			same(t, big)
		})
		t.Run(way+"/connection kept", func(t *testing.T) {
			is(t, curl(t, "/small", "%{num_connects},", base+"/small", "-o", out, base+"/small", "-o", out), "1,0,0,")
		})
		t.Run(way+"/an offer of h2c is not taken", func(t *testing.T) {
			is(t, curl(t, "/small", "%{http_code} %{http_version}", "--http2"), "200 1.1")
		})
		t.Run(way+"/head", func(t *testing.T) {
			is(t, curl(t, "/big", "%{http_code} %header{content-length}", "-I"), "200 3000000")
		})
		t.Run(way+"/range", func(t *testing.T) {
			is(t, curl(t, "/big", "%{http_code}", "-r", "1000-1999"), "206")
			same(t, big[1000:2000])
		})
		t.Run(way+"/compressed", func(t *testing.T) {
			is(t, curl(t, "/small", "%header{content-encoding}", "--compressed"), "gzip")
			same(t, []byte(strings.Repeat("hello ", 100)))
		})
		t.Run(way+"/redirect", func(t *testing.T) {
			is(t, curl(t, "/moved", "%{http_code}", "-L", "--connect-to", "::"+at), "200")
		})
		t.Run(way+"/upload", func(t *testing.T) {
			// Expect: 100-continue, because of the size.
			is(t, curl(t, "/up-"+way, "%{http_code}", "-T", filepath.Join(dir, "big"), "-H", "expect: 100-continue"), "201")
			curl(t, "/up-"+way, "")
			same(t, big)
		})
		t.Run(way+"/chunked upload", func(t *testing.T) {
			is(t, curl(t, "/chunked-"+way, "%{http_code}", "-T", filepath.Join(dir, "big"), "-H", "transfer-encoding: chunked"), "201")
			curl(t, "/chunked-"+way, "")
			same(t, big)
		})
		t.Run(way+"/CONNECT", func(t *testing.T) {
			said, err := attempt(t, "", "curl", "-sS", "-v", "--max-time", "20", "-p", "-x", base, "http://example.test/")
			if err == nil || !strings.Contains(said, "weft-reason: bad-request") {
				t.Errorf("%v: %s", err, said)
			}
		})
	}
}

// One request for each connection: curl 7.88 fails at more with prior knowledge, without a proxy too.
func TestCurlHTTP2(t *testing.T) {
	server := serve(t, false, true, echo)
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		t.Run(way, func(t *testing.T) {
			body := filepath.Join(t.TempDir(), "body")
			write(t, body, bytes.Repeat([]byte("0123456789"), 200_000))
			out := body + ".out"
			run(t, "curl", "-sS", "--max-time", "20", "--http2-prior-knowledge", "-T", body, "-o", out, "http://"+at+"/echo")
			got, _ := os.ReadFile(out)
			if len(got) != 2_000_000 {
				t.Errorf("%d bytes came back", len(got))
			}
		})
	}
}

func TestH2load(t *testing.T) {
	server := serve(t, true, true, echo)
	upload := filepath.Join(t.TempDir(), "upload")
	write(t, upload, bytes.Repeat([]byte("x"), 20_000))
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		for name, args := range map[string][]string{
			"http2":        {"-n", "3000", "-c", "4", "-m", "50"},
			"http2 upload": {"-n", "500", "-c", "4", "-m", "20", "-d", upload},
			"http1":        {"-n", "2000", "-c", "8", "--h1"},
		} {
			t.Run(way+"/"+name, func(t *testing.T) {
				said := run(t, "h2load", append(args, "http://"+at+"/load")...)
				wanted := fmt.Sprintf("%[1]s total, %[1]s started, %[1]s done, %[1]s succeeded, 0 failed, 0 errored, 0 timeout", args[1])
				if !strings.Contains(said, wanted) {
					t.Error(said)
				}
			})
		}
	}
}

func TestWrk(t *testing.T) {
	server, _ := nginx(t)
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		t.Run(way, func(t *testing.T) {
			said := run(t, "wrk", "-t", "1", "-c", "16", "-d", "1s", "http://"+at+"/small")
			if strings.Contains(said, "Non-2xx") || strings.Contains(said, "Socket errors") || !regexp.MustCompile(`[1-9]\d* requests in`).MatchString(said) {
				t.Error(said)
			}
		})
	}
}
