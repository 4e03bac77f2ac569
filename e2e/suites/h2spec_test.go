package suites

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// h2spec, with its strict cases, against both listeners. The server speaks HTTP/2 only: on a port that may speak anything,
// bytes that are no HTTP/2 preface (case 3.5/2) are not Weft's to refuse but go to the server.
func TestH2spec(t *testing.T) {
	server := serve(t, false, true, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, strings.Repeat("hello ", 100))
	})
	h2spec := tool(t, "h2spec")
	for way, at := range behind(t, server, "outbound", "inbound", "mesh") {
		t.Run(way, func(t *testing.T) {
			out, err := attempt(t, "", h2spec, "-S", "-o", "5", "-p", port(at))
			if err != nil || !strings.Contains(out, "146 tests, 146 passed, 0 skipped, 0 failed") {
				_, failures, _ := strings.Cut(out, "Failures:")
				t.Errorf("%v\n%s", err, failures)
			}
		})
	}
}
