package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// replica is what this process knows about itself and what it was told to do wrong.
type replica struct {
	pod, version string
	started      time.Time
	count        atomic.Int64 // requests served, /healthz and /live not counted
	connections  atomic.Int64 // HTTP connections that are open now
	failing      atomic.Bool  // every request gets 503
	unready      atomic.Bool  // /healthz answers 503
	delay        atomic.Int64 // nanoseconds added to every request
	keys         string       // what /keys answers
	traces       traces       // what collectors are told
}

func newReplica() *replica {
	host, _ := os.Hostname()
	return &replica{pod: envOr("POD_NAME", host), version: envOr("VERSION", "v1"), started: time.Now()}
}

// serve opens any set of listeners. Every flag can be given by the environment too (HTTP, GRPC, TCP, BANNER, TLS).
func serve(args []string) int {
	fs := flags("serve")
	httpAddrs := fs.String("http", envOr("HTTP", ""), "HTTP/1.1 and h2c, comma separated addresses (when no listener is named: all of them, at the addresses that usage shows)")
	grpcAddrs := fs.String("grpc", envOr("GRPC", ""), "gRPC: grpc.testing.TestService and health")
	tcpAddrs := fs.String("tcp", envOr("TCP", ""), "TCP that echoes")
	bannerAddrs := fs.String("banner", envOr("BANNER", ""), "TCP where the server speaks first, then echoes")
	tlsAddrs := fs.String("tls", envOr("TLS", ""), "HTTPS with a certificate of its own")
	keys := fs.String("keys", envOr("KEYS", ""), "what /keys answers, such as a JSON Web Key Set")
	delayStart := fs.Duration("delay-start", 0, "open the ports only after this time")
	idle := fs.Duration("idle-timeout", 0, "close keep-alive connections that are idle for this time")
	drain := fs.Duration("drain", time.Second, "after SIGTERM: unready for this time before the listeners close")
	grace := fs.Duration("grace", 10*time.Second, "then: how long requests may still run")
	verbose := fs.Bool("log", false, "a line for each request")
	parse(fs, args, 0)
	if *httpAddrs+*grpcAddrs+*tcpAddrs+*bannerAddrs+*tlsAddrs == "" {
		*httpAddrs, *grpcAddrs, *tcpAddrs, *bannerAddrs, *tlsAddrs = ":8080", ":9000", ":7000", ":2525", ":8443"
	}

	stop := terminated()
	select {
	case <-stop:
		return 0
	case <-time.After(*delayStart):
	}

	r := newReplica()
	failed := make(chan error, 16)
	listen := func(addrs string, serve func(net.Listener) error) {
		for _, addr := range strings.FieldsFunc(addrs, func(c rune) bool { return c == ',' }) {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				failed <- err
				return
			}
			go func() { failed <- serve(l) }()
		}
	}

	r.keys = *keys
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	web := &http.Server{Handler: r.handler(*verbose), IdleTimeout: *idle, Protocols: &protocols, ConnState: r.connection,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{selfSigned(r.pod)}}}
	rpc, health := r.grpcServer(grpc.MaxConcurrentStreams(1000))
	raw := &rawServer{}
	listen(*httpAddrs, web.Serve)
	listen(*tlsAddrs, func(l net.Listener) error { return web.ServeTLS(l, "", "") })
	listen(*grpcAddrs, rpc.Serve)
	listen(*tcpAddrs, func(l net.Listener) error { return raw.serve(l, "") })
	listen(*bannerAddrs, func(l net.Listener) error { return raw.serve(l, "220 "+r.pod+" ready\r\n") })

	select {
	case err := <-failed:
		return fail(err)
	case <-stop:
	}
	fmt.Println("draining")
	r.unready.Store(true)
	health.Shutdown()
	select {
	case <-time.After(*drain):
	case <-stop:
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), *grace)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { web.Shutdown(ctx) })
	all.Go(rpc.GracefulStop)
	all.Go(func() { raw.shutdown(ctx) })
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	case <-stop:
	}
	return 0
}

func (r *replica) connection(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		r.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		r.connections.Add(-1)
	}
}
