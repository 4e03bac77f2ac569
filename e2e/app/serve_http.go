package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// what is the answer of every endpoint that says who answered.
type what struct {
	Pod         string            `json:"pod"`
	Version     string            `json:"version"`
	Port        string            `json:"port"`
	Path        string            `json:"path"`
	Method      string            `json:"method"`
	Host        string            `json:"host"`
	Proto       string            `json:"proto"`
	Remote      string            `json:"remote"`
	SNI         string            `json:"sni,omitempty"`
	Headers     map[string]string `json:"headers"`
	Body        string            `json:"body,omitempty"`
	Bytes       int64             `json:"bytes"`
	Count       int64             `json:"count"`
	Connections int64             `json:"connections"`
	Upstream    *outcome          `json:"upstream,omitempty"`
}

// handler: `/` and every path not named here answer with JSON about the request and this replica.
func (r *replica) handler(verbose bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", r.answer)
	mux.HandleFunc("/status/{code}", r.status)
	mux.HandleFunc("/delay/{time}", r.delayed)
	mux.HandleFunc("/fail", r.fails)
	mux.HandleFunc("/call", r.call)
	mux.HandleFunc("/stream", r.stream)
	mux.HandleFunc("/bytes/{n}", r.bytes)
	mux.HandleFunc("/echo", func(w http.ResponseWriter, q *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, q.Body)
	})
	mux.HandleFunc("/slow-start", r.slowStart)
	mux.HandleFunc("/close", r.closes)
	mux.HandleFunc("/ws", r.websocket)
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "application/jwk-set+json")
		io.WriteString(w, r.keys)
	})
	mux.HandleFunc("POST /v1/traces", r.traces.take)
	mux.HandleFunc("GET /v1/traces", r.traces.tell)
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, "/keys", http.StatusFound) })

	control := http.NewServeMux() // works while everything else is told to fail
	control.HandleFunc("/toggle", r.toggle)
	control.HandleFunc("/exit", func(_ http.ResponseWriter, q *http.Request) { os.Exit(number(q, "code", 3)) })
	control.HandleFunc("/live", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	control.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if r.unready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	})

	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if verbose {
			fmt.Println(q.Method, q.URL, q.Proto, q.RemoteAddr)
		}
		if h, pattern := control.Handler(q); pattern != "" {
			h.ServeHTTP(w, q)
			return
		}
		r.count.Add(1)
		w.Header().Set("x-pod", r.pod)
		w.Header().Set("x-version", r.version)
		if d := r.delay.Load(); d > 0 {
			wait(q, time.Duration(d))
		}
		if r.failing.Load() {
			r.write(w, q, http.StatusServiceUnavailable, nil)
			return
		}
		mux.ServeHTTP(w, q)
	})
}

func (r *replica) write(w http.ResponseWriter, q *http.Request, status int, upstream *outcome) {
	body, _ := io.ReadAll(io.LimitReader(q.Body, keptOfBody))
	more, _ := io.Copy(io.Discard, q.Body)
	headers := map[string]string{}
	for k, v := range q.Header {
		headers[strings.ToLower(k)] = strings.Join(v, ", ")
	}
	a := what{Pod: r.pod, Version: r.version, Port: localPort(q), Path: q.URL.RequestURI(), Method: q.Method, Host: q.Host, Proto: q.Proto,
		Remote: q.RemoteAddr, Headers: headers, Body: string(body), Bytes: int64(len(body)) + more,
		Count: r.count.Load(), Connections: r.connections.Load(), Upstream: upstream}
	if q.TLS != nil {
		a.SNI = q.TLS.ServerName
	}
	w.Header().Set("content-type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(a)
}

func (r *replica) answer(w http.ResponseWriter, q *http.Request) { r.write(w, q, http.StatusOK, nil) }

func (r *replica) status(w http.ResponseWriter, q *http.Request) {
	code, err := strconv.Atoi(q.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		code = http.StatusBadRequest
	}
	r.write(w, q, code, nil)
}

func (r *replica) delayed(w http.ResponseWriter, q *http.Request) {
	d, err := time.ParseDuration(q.PathValue("time"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	wait(q, d)
	r.answer(w, q)
}

// fails: /fail?share=0.3&status=503
func (r *replica) fails(w http.ResponseWriter, q *http.Request) {
	share, err := strconv.ParseFloat(q.FormValue("share"), 64)
	if err != nil {
		share = 1
	}
	if rand.Float64() < share {
		r.write(w, q, number(q, "status", http.StatusServiceUnavailable), nil)
		return
	}
	r.answer(w, q)
}

// toggle: /toggle?fail=true makes this replica answer 503 to everything; ready=false makes it unready; delay=200ms slows it down.
func (r *replica) toggle(w http.ResponseWriter, q *http.Request) {
	query := q.URL.Query()
	if query.Has("fail") {
		r.failing.Store(query.Get("fail") == "true")
	}
	if query.Has("ready") {
		r.unready.Store(query.Get("ready") != "true")
	}
	if query.Has("delay") {
		d, err := time.ParseDuration(query.Get("delay"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.delay.Store(int64(d))
	}
	fmt.Fprintf(w, `{"pod":%q,"fail":%v,"ready":%v,"delay":%q}`+"\n", r.pod, r.failing.Load(), !r.unready.Load(), time.Duration(r.delay.Load()))
}

// upstreams is the client of /call: connections are kept.
var upstreams = (&request{timeout: 5 * time.Second}).client(256)

// call: /call?url=http://back/ asks somebody else and answers with that status and the whole answer as `upstream`.
func (r *replica) call(w http.ResponseWriter, q *http.Request) {
	asked := request{url: q.FormValue("url"), headers: http.Header{}}
	for _, name := range []string{"x-request-id", "traceparent"} { // what applications pass on so that a trace holds together
		if v := q.Header.Get(name); v != "" {
			asked.headers.Set(name, v)
		}
	}
	out := asked.do(q.Context(), upstreams)
	status := out.Status
	if out.Error != nil {
		status = http.StatusBadGateway
	}
	r.write(w, q, status, &out)
}

// stream: /stream?n=5&interval=100ms, a flushed line each time, and a trailer.
func (r *replica) stream(w http.ResponseWriter, q *http.Request) {
	interval, err := time.ParseDuration(q.FormValue("interval"))
	if err != nil {
		interval = 100 * time.Millisecond
	}
	w.Header().Set("trailer", "lines")
	n := number(q, "n", 5)
	for i := range n {
		if _, err := fmt.Fprintf(w, "%s line %d\n", r.pod, i); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		wait(q, interval)
	}
	w.Header().Set("lines", strconv.Itoa(n))
}

func (r *replica) bytes(w http.ResponseWriter, q *http.Request) {
	n, err := strconv.ParseInt(q.PathValue("n"), 10, 64)
	if err != nil || n < 0 {
		http.Error(w, "not a number of bytes", http.StatusBadRequest)
		return
	}
	w.Header().Set("content-length", strconv.FormatInt(n, 10))
	chunk := []byte(strings.Repeat("0123456789abcdef", 2048))
	for n > 0 {
		k, err := w.Write(chunk[:min(int64(len(chunk)), n)])
		if err != nil {
			return
		}
		n -= int64(k)
	}
}

// slowStart: answers take peak just after the start and come down to nothing over the window, like an app with cold caches.
func (r *replica) slowStart(w http.ResponseWriter, q *http.Request) {
	window, peak := duration(q, "window", 10*time.Second), duration(q, "peak", time.Second)
	if age := time.Since(r.started); age < window {
		wait(q, time.Duration(float64(peak)*(1-float64(age)/float64(window))))
	}
	r.answer(w, q)
}

// closes ends the connection (HTTP/2: the stream) without an answer.
func (r *replica) closes(w http.ResponseWriter, _ *http.Request) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		c.Close()
		return
	}
	panic(http.ErrAbortHandler)
}

func (r *replica) websocket(w http.ResponseWriter, q *http.Request) {
	c, err := websocket.Accept(w, q, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, reader, err := c.Reader(q.Context())
		if err != nil {
			return
		}
		writer, err := c.Writer(q.Context(), kind)
		if err != nil {
			return
		}
		if _, err := io.Copy(writer, bufio.NewReader(reader)); err != nil {
			return
		}
		if writer.Close() != nil {
			return
		}
	}
}

func wait(q *http.Request, d time.Duration) {
	select {
	case <-q.Context().Done():
	case <-time.After(d):
	}
}

func number(q *http.Request, name string, otherwise int) int {
	if n, err := strconv.Atoi(q.FormValue(name)); err == nil {
		return n
	}
	return otherwise
}

func duration(q *http.Request, name string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(q.FormValue(name)); err == nil {
		return d
	}
	return otherwise
}

func localPort(q *http.Request) string {
	local := fmt.Sprint(q.Context().Value(http.LocalAddrContextKey))
	return local[strings.LastIndex(local, ":")+1:]
}
