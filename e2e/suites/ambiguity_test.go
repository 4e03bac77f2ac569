package suites

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Requests that two parsers may understand differently, from ambiguity/corpus.txt: what Weft makes of each, checked against
// the table in docs/security.md, and that nothing which could smuggle gets through. With WEFT_COMPARE=1 (`make ambiguity`)
// nginx, HAProxy and Envoy are asked too, and the table is written anew.

const table = "../../docs/security.md"

type ambiguous struct {
	name   string
	bytes  string
	refuse bool
}

func corpus(t *testing.T) (cases []ambiguous) {
	t.Helper()
	text, err := os.ReadFile("ambiguity/corpus.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if name, is := strings.CutPrefix(line, "== "); is {
			name, refuse := strings.CutPrefix(name, "! ")
			cases = append(cases, ambiguous{name: name, refuse: refuse})
		} else if len(cases) > 0 {
			cases[len(cases)-1].bytes += unescape(t, line)
		}
	}
	return cases
}

func unescape(t *testing.T, text string) string {
	t.Helper()
	named := map[byte]byte{'r': '\r', 'n': '\n', 't': '\t', '0': 0, '\\': '\\'}
	var out []byte
	for n := 0; n < len(text); n++ {
		if text[n] != '\\' {
			out = append(out, text[n])
			continue
		}
		n++
		if text[n] == 'x' {
			b, err := strconv.ParseUint(text[n+1:n+3], 16, 8)
			if err != nil {
				t.Fatal(err)
			}
			out, n = append(out, byte(b)), n+2
			continue
		}
		b, known := named[text[n]]
		if !known {
			t.Fatalf("not understood: %s", text)
		}
		out = append(out, b)
	}
	return string(out)
}

// A request as a strict server understands it.
type understood struct {
	line, host, body string
	chunked          bool
	headers          []string
}

// What reached the server.
type passed struct {
	requests  []understood
	malformed []string
	// All of it, as it came.
	raw bytes.Buffer
}

// recorder is a server that takes only what allows of one reading, and notes it. A request that breaks off is none.
type recorder struct {
	sync.Mutex
	passed *passed
}

func (r *recorder) take() *passed {
	r.Lock()
	defer r.Unlock()
	taken := r.passed
	r.passed = new(passed)
	return taken
}

func (r *recorder) note(raw *bytes.Buffer, request understood, err error) {
	r.Lock()
	defer r.Unlock()
	if err != nil {
		r.passed.malformed = append(r.passed.malformed, err.Error())
	} else {
		r.passed.requests = append(r.passed.requests, request)
	}
	r.passed.raw.Write(raw.Bytes())
	raw.Reset()
}

func (r *recorder) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			raw := new(bytes.Buffer)
			read := bufio.NewReader(io.TeeReader(c, raw))
			for {
				request, err := strict(read)
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
					return
				}
				r.note(raw, request, err)
				if err != nil {
					io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
					return
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}()
	}
}

var (
	requestLine = regexp.MustCompile(`^[!#$%&'*+.^_|~0-9A-Za-z-]+ (/|\*|https?://)[^\x00-\x20\x7f]* HTTP/1\.[01]$`)
	headerLine  = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\\x00-\\x08\\x0a-\\x1f\\x7f]*)$")
	digits      = regexp.MustCompile(`^[0-9]{1,18}$`)
	chunkSize   = regexp.MustCompile(`^[0-9a-fA-F]{1,15}(;[!-~]*)?$`)
	address     = regexp.MustCompile(`^[0-9.]+:[0-9]+$`)
	hostName    = regexp.MustCompile(`^[0-9A-Za-z.\[\]:-]*$`)
)

// strict reads a request as the grammar of RFC 9112 has it, without any of the leniency that it allows.
func strict(read *bufio.Reader) (understood, error) {
	request := understood{}
	line, err := strictLine(read)
	if err != nil {
		return request, err
	}
	if !requestLine.MatchString(line) {
		return request, fmt.Errorf("request line %q", line)
	}
	request.line = line
	hosts, length, encoding := []string{}, "", ""
	for {
		line, err := strictLine(read)
		if err != nil {
			return request, fmt.Errorf("head: %w", err)
		}
		if line == "" {
			break
		}
		parts := headerLine.FindStringSubmatch(line)
		if parts == nil {
			return request, fmt.Errorf("header %q", line)
		}
		name, value := strings.ToLower(parts[1]), strings.Trim(parts[2], " \t")
		request.headers = append(request.headers, name+": "+value)
		switch {
		case name == "host":
			hosts = append(hosts, value)
		case name == "content-length" && (length != "" || !digits.MatchString(value)):
			return request, fmt.Errorf("content-length %q", value)
		case name == "content-length":
			length = value
		case name == "transfer-encoding" && (encoding != "" || !strings.EqualFold(value, "chunked")):
			return request, fmt.Errorf("transfer-encoding %q", value)
		case name == "transfer-encoding":
			encoding = value
		}
	}
	if len(hosts) != 1 || !hostName.MatchString(hosts[0]) {
		return request, fmt.Errorf("hosts %q", hosts)
	}
	request.host = hosts[0]
	switch {
	case encoding != "" && length != "":
		return request, errors.New("two lengths")
	case encoding != "":
		request.chunked = true
		request.body, err = strictChunks(read)
	case length != "":
		n, _ := strconv.Atoi(length)
		body := make([]byte, n)
		_, err = io.ReadFull(read, body)
		request.body = string(body)
	}
	if err != nil {
		err = fmt.Errorf("body: %w", err)
	}
	return request, err
}

func strictChunks(read *bufio.Reader) (string, error) {
	body := ""
	for {
		size, err := strictLine(read)
		if err != nil {
			return body, err
		}
		if !chunkSize.MatchString(size) {
			return body, fmt.Errorf("chunk size %q", size)
		}
		number, _, _ := strings.Cut(size, ";")
		n, _ := strconv.ParseInt(number, 16, 64)
		if n == 0 {
			for {
				if line, err := strictLine(read); err != nil || line == "" {
					return body, err
				}
			}
		}
		chunk := make([]byte, n+2)
		if _, err := io.ReadFull(read, chunk); err != nil {
			return body, err
		}
		if !strings.HasSuffix(string(chunk), "\r\n") {
			return body, errors.New("a chunk without an end")
		}
		body += string(chunk[:n])
	}
}

func strictLine(read *bufio.Reader) (string, error) {
	line, err := read.ReadString('\n')
	if err != nil {
		if line != "" {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	text, crlf := strings.CutSuffix(line, "\r\n")
	if !crlf || strings.ContainsAny(text, "\r\x00") {
		return "", fmt.Errorf("line %q", line)
	}
	return text, nil
}

// asked sends the bytes, and gives the status codes that came back.
func asked(t *testing.T, at, text string) (statuses []string) {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, text)
	// Answers come at once; what is still awaited after that never comes.
	got, buffer, patience := "", make([]byte, 64<<10), 10*time.Second
	for {
		c.SetReadDeadline(time.Now().Add(patience))
		n, err := c.Read(buffer)
		got += string(buffer[:n])
		if err != nil {
			if n := len(got); n == 0 {
				var timeout net.Error
				if errors.As(err, &timeout) && timeout.Timeout() {
					return []string{"waits"}
				}
				return []string{"closed"}
			}
			break
		}
		patience = 400 * time.Millisecond
	}
	for _, match := range regexp.MustCompile(`(?m)^HTTP/1\.[01] (\d\d\d)`).FindAllStringSubmatch(got, -1) {
		statuses = append(statuses, match[1])
	}
	return statuses
}

// opaque: the bytes passed as they are.
func opaque(c ambiguous, p *passed) bool {
	return p.raw.Len() > 0 && strings.HasPrefix(c.bytes, p.raw.String())
}

// verdict is a cell of the table.
func verdict(statuses []string, p *passed) string {
	var texts []string
	for _, request := range p.requests {
		words := strings.Fields(request.line)
		text := words[0] + " " + words[1]
		if request.host != "h" {
			text += ", Host " + cmp.Or(address.ReplaceAllString(request.host, "as addressed"), "empty")
		}
		switch {
		case request.chunked:
			text += fmt.Sprintf(", %d in chunks", len(request.body))
		case request.body != "":
			text += fmt.Sprintf(", %d", len(request.body))
		}
		texts = append(texts, "`"+text+"`")
	}
	for range p.malformed {
		texts = append(texts, "**malformed**")
	}
	if len(texts) == 0 {
		return strings.Join(statuses, " ")
	}
	return "→ " + strings.Join(texts, ", ")
}

type asker struct {
	name string
	at   string
	// What is no HTTP to it passes as opaque bytes, of this client alone.
	detects bool
	*recorder
}

func TestAmbiguity(t *testing.T) {
	cases := corpus(t)
	record := func() (*recorder, string) {
		r, l := &recorder{passed: new(passed)}, listen(t)
		go r.serve(l)
		return r, l.Addr().String()
	}
	askers := []asker{}
	add := func(name string, start func(server string) string) {
		r, server := record()
		askers = append(askers, asker{name, start(server), false, r})
	}
	add("Weft", func(server string) string { return behind(t, server, "mesh")["mesh"] })
	add("Weft inbound", func(server string) string { return behind(t, server, "inbound")["inbound"] })
	askers[0].detects, askers[1].detects = true, true
	add("Weft, declared HTTP", func(server string) string { return behind(t, server, "mesh/http1")["mesh/http1"] })
	compare := os.Getenv("WEFT_COMPARE") != ""
	if compare {
		add("nginx", func(server string) string { return nginxBefore(t, server) })
		add("HAProxy", func(server string) string { return haproxyBefore(t, server) })
		add("Envoy", func(server string) string { return envoyBefore(t, server) })
	}
	verdicts := make([][]string, len(askers))
	var all sync.WaitGroup
	for n, asker := range askers {
		all.Go(func() {
			for _, c := range cases {
				statuses := asked(t, asker.at, c.bytes)
				passed := asker.take()
				told := verdict(statuses, passed)
				switch {
				case asker.detects && opaque(c, passed):
					told = "opaque"
				case strings.HasPrefix(asker.name, "Weft"):
					safe(t, asker.name, c, passed)
				}
				verdicts[n] = append(verdicts[n], told)
			}
		})
	}
	all.Wait()
	for n := range cases {
		if verdicts[1][n] != verdicts[0][n] {
			t.Errorf("%s: %s through two proxies, %s through the server's", cases[n].name, verdicts[0][n], verdicts[1][n])
		}
	}
	columns := slices.Delete(verdicts, 1, 2)
	if compare {
		tabulate(t, cases, columns)
		return
	}
	text, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	for n, c := range cases {
		row := fmt.Sprintf("| %s | %s | %s | ", cell(c.name), columns[0][n], columns[1][n])
		if !strings.Contains(string(text), "\n"+row) {
			t.Errorf("not in %s (`make ambiguity` writes it): %s", table, row)
		}
	}
}

// safe says what is wrong with what reached the server.
func safe(t *testing.T, name string, c ambiguous, p *passed) {
	if c.refuse && len(p.requests) > 0 {
		t.Errorf("%s: %s: passed on: %+v", name, c.name, p.requests)
	}
	if len(p.requests) > 1 && !strings.Contains(c.name, "pipelined") {
		t.Errorf("%s: %s: more than one request: %+v", name, c.name, p.requests)
	}
	for _, request := range p.requests {
		if strings.Contains(request.line, "smuggled") {
			t.Errorf("%s: %s: smuggled", name, c.name)
		}
		for _, header := range request.headers {
			if strings.Contains(header, "identity: spiffe://evil") {
				t.Errorf("%s: %s: another's identity: %s", name, c.name, header)
			}
		}
	}
	if len(p.malformed) > 0 {
		t.Errorf("%s: %s: passed on, malformed: %q", name, c.name, p.malformed)
	}
}

func cell(text string) string {
	return strings.ReplaceAll(text, "|", `\|`)
}

func tabulate(t *testing.T, cases []ambiguous, columns [][]string) {
	t.Helper()
	var rows strings.Builder
	rows.WriteString("| request | Weft | Weft, port declared as HTTP | nginx | HAProxy | Envoy |\n|---|---|---|---|---|---|\n")
	for n, c := range cases {
		fmt.Fprintf(&rows, "| %s |", cell(c.name))
		for _, column := range columns {
			fmt.Fprintf(&rows, " %s |", column[n])
		}
		rows.WriteString("\n")
	}
	text, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	begin, rest, one := strings.Cut(string(text), "<!-- ambiguity: made by `make ambiguity` -->\n")
	_, end, two := strings.Cut(rest, "<!-- /ambiguity -->")
	if !one || !two {
		t.Fatalf("%s has no place for the table", table)
	}
	write(t, table, []byte(begin+"<!-- ambiguity: made by `make ambiguity` -->\n"+rows.String()+"<!-- /ambiguity -->"+end))
}

func nginxBefore(t *testing.T, server string) string {
	dir, at := shared(t), free(t)
	conf := filepath.Join(dir, "nginx.conf")
	write(t, conf, fmt.Appendf(nil, `daemon off; pid %[1]s/pid; error_log /dev/null; worker_processes 1;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server {
    listen %[2]s;
    location / { proxy_pass http://%[3]s; proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_set_header Connection ""; }
  }
}`, dir, at, server))
	start(t, at, "nginx", "-c", conf, "-p", dir)
	return at
}

func haproxyBefore(t *testing.T, server string) string {
	at := free(t)
	conf := filepath.Join(t.TempDir(), "haproxy.cfg")
	write(t, conf, fmt.Appendf(nil, "defaults\n  mode http\n  timeout connect 2s\n  timeout client 5s\n  timeout server 5s\n"+
		"frontend in\n  bind %s\n  default_backend out\nbackend out\n  server one %s\n", at, server))
	start(t, at, "haproxy", "-db", "-f", conf)
	return at
}

func envoyBefore(t *testing.T, server string) string {
	at := free(t)
	conf := filepath.Join(t.TempDir(), "envoy.yaml")
	write(t, conf, fmt.Appendf(nil, `static_resources:
  listeners:
  - address: { socket_address: { address: 127.0.0.1, port_value: %s } }
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          http_filters:
          - name: router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
          route_config:
            virtual_hosts:
            - { name: all, domains: ["*"], routes: [ { match: { prefix: "/" }, route: { cluster: out } } ] }
  clusters:
  - name: out
    connect_timeout: 2s
    load_assignment:
      cluster_name: out
      endpoints: [ { lb_endpoints: [ { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: %s } } } } ] } ]
`, port(at), port(server)))
	start(t, at, "envoy", "-c", conf, "--concurrency", "1", "--use-dynamic-base-id", "-l", "off")
	return at
}
