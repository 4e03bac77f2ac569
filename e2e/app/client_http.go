package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const keptOfBody = 64 << 10

// request is what every HTTP client command can say about its request.
type request struct {
	url, method, body string
	headers           http.Header
	timeout           time.Duration
	h2c, fresh        bool
}

func (q *request) flags(fs *flag.FlagSet) {
	q.headers = http.Header{}
	fs.Func("H", "header, name:value; a value @FILE is read from the file as a bearer token (repeatable)", func(s string) error {
		name, value, ok := strings.Cut(s, ":")
		if !ok {
			return fmt.Errorf("%q is not name:value", s)
		}
		value = strings.TrimSpace(value)
		if file, ok := strings.CutPrefix(value, "@"); ok {
			token, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			value = "Bearer " + string(token)
		}
		q.headers.Add(strings.TrimSpace(name), value)
		return nil
	})
	fs.StringVar(&q.method, "X", "", "method (default GET, with -d POST)")
	fs.StringVar(&q.body, "d", "", "body")
	fs.DurationVar(&q.timeout, "timeout", 10*time.Second, "of one request, in all")
	fs.BoolVar(&q.h2c, "http2", false, "HTTP/2 without TLS, by prior knowledge")
	fs.BoolVar(&q.fresh, "new-connections", false, "a connection for each request")
}

// client makes a client with a pool of at most n connections.
func (q *request) client(n int) *http.Client {
	var protocols http.Protocols
	if q.h2c {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP1(true)
		protocols.SetHTTP2(true)
	}
	return &http.Client{Timeout: q.timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{Protocols: &protocols, MaxConnsPerHost: n, MaxIdleConnsPerHost: n, DisableKeepAlives: q.fresh,
			DisableCompression: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: (&net.Dialer{}).DialContext}}
}

// outcome is one line of `get --json`.
type outcome struct {
	Status  int               `json:"status"`
	Ms      float64           `json:"ms"`
	Proto   string            `json:"proto,omitempty"`
	Headers map[string]string `json:"headers"`
	Body    any               `json:"body"`
	Bytes   int64             `json:"bytes"`
	Error   *string           `json:"error"`
	raw     []byte
}

func (q *request) do(ctx context.Context, c *http.Client) outcome {
	since := time.Now()
	out := outcome{Headers: map[string]string{}, Body: ""}
	failed := func(err error) outcome {
		text := err.Error()
		out.Error, out.Ms = &text, millis(time.Since(since))
		return out
	}
	method := q.method
	if method == "" && q.body != "" {
		method = http.MethodPost
	}
	var body io.Reader
	if q.body != "" {
		body = strings.NewReader(q.body)
	}
	r, err := http.NewRequestWithContext(ctx, method, q.url, body)
	if err != nil {
		return failed(err)
	}
	r.Header = q.headers.Clone()
	if host := q.headers.Get("Host"); host != "" {
		r.Host = host
	}
	a, err := c.Do(r)
	if err != nil {
		return failed(err)
	}
	defer a.Body.Close()
	for k, v := range a.Header {
		out.Headers[strings.ToLower(k)] = strings.Join(v, ", ")
	}
	out.Proto = a.Proto
	kept, err := io.ReadAll(io.LimitReader(a.Body, keptOfBody))
	var more int64
	if err == nil {
		more, err = io.Copy(io.Discard, a.Body)
	}
	out.raw, out.Bytes = kept, int64(len(kept))+more
	for k, v := range a.Trailer {
		out.Headers[strings.ToLower(k)] = strings.Join(v, ", ")
	}
	if err != nil {
		return failed(err)
	}
	out.Status, out.Ms = a.StatusCode, millis(time.Since(since))
	if json.Unmarshal(kept, &out.Body) != nil {
		out.Body = string(kept)
	}
	return out
}

func get(args []string) int {
	var q request
	fs := flags("get")
	q.flags(fs)
	n := fs.Int64("n", 1, "requests")
	workers := fs.Int("c", 1, "at the same time, each on a connection of its own")
	interval := fs.Duration("interval", 0, "a worker's pause between requests")
	asJSON := fs.Bool("json", false, "a JSON object for each request")
	q.url = parse(fs, args, 1)[0]

	var left atomic.Int64
	left.Store(*n)
	var mu sync.Mutex
	var all sync.WaitGroup
	code := 0
	for range *workers {
		c := q.client(1)
		all.Go(func() {
			for left.Add(-1) >= 0 {
				out := q.do(context.Background(), c)
				mu.Lock()
				code = print(out, *asJSON)
				mu.Unlock()
				time.Sleep(*interval)
			}
		})
	}
	all.Wait()
	return code
}

// print returns the exit code of the whole, decided by the last request. With --json a failure is an answer like any other.
func print(out outcome, asJSON bool) int {
	if asJSON {
		b, _ := json.Marshal(out)
		os.Stdout.Write(append(b, '\n'))
		return 0
	}
	if out.Error != nil {
		fmt.Fprintln(os.Stderr, *out.Error)
		return 1
	}
	os.Stdout.Write(out.raw)
	if !bytes.HasSuffix(out.raw, []byte("\n")) {
		fmt.Println()
	}
	if out.Status/100 != 2 {
		fmt.Fprintln(os.Stderr, "status", out.Status, out.Headers["weft-reason"])
		return 1
	}
	return 0
}

func job(args []string) int {
	var q request
	fs := flags("job")
	q.flags(fs)
	q.url = parse(fs, args, 1)[0]
	return print(q.do(context.Background(), q.client(1)), false)
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
