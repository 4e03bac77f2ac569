package main

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The commands are the interface that the tests of the mesh read, so they are tried as such: arguments in, standard output back.

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

// said runs a command and returns its standard output and exit code.
func said(t *testing.T, name string, args ...string) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	code := commands[name].run(args)
	os.Stdout = stdout
	w.Close()
	out, _ := io.ReadAll(r)
	return string(out), code
}

func object(t *testing.T, name string, args ...string) map[string]any {
	t.Helper()
	out, code := said(t, name, append(args, "--json")...)
	var o map[string]any
	if err := json.Unmarshal([]byte(out), &o); err != nil || code != 0 {
		t.Fatalf("%s %v: exit %d, %v: %s", name, args, code, err, out)
	}
	return o
}

func started(t *testing.T) (web, rpc, echo, hello, secure string) {
	t.Helper()
	t.Setenv("POD_NAME", "pod-1")
	t.Setenv("VERSION", "v7")
	web, rpc, echo, hello, secure = free(t), free(t), free(t), free(t), free(t)
	ended := make(chan int, 1)
	go func() {
		ended <- serve([]string{"--http", web, "--grpc", rpc, "--tcp", echo, "--banner", hello, "--tls", secure, "--drain", "10ms"})
	}()
	for _, addr := range []string{web, rpc, echo, hello, secure} {
		for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			if c, err := net.Dial("tcp", addr); err == nil {
				c.Close()
				break
			}
			if time.Since(begin) > 5*time.Second {
				t.Fatal("no listener at", addr)
			}
		}
	}
	t.Cleanup(func() {
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
		select {
		case code := <-ended:
			if code != 0 {
				t.Error("serve ended with", code)
			}
		case <-time.After(15 * time.Second):
			t.Error("serve does not end")
		}
	})
	return
}

func TestEveryClientUnderstandsTheServer(t *testing.T) {
	web, rpc, echo, hello, secure := started(t)
	url := "http://" + web

	for _, protocol := range [][]string{{url + "/"}, {url + "/", "--http2"}, {"https://" + secure + "/"}} {
		body := object(t, "get", append(protocol, "-H", "weft-test: x")...)["body"].(map[string]any)
		if body["pod"] != "pod-1" || body["version"] != "v7" || body["headers"].(map[string]any)["weft-test"] != "x" {
			t.Errorf("get %v: %v", protocol, body)
		}
	}
	if up := object(t, "get", url+"/call?url="+url+"/status/418"); up["status"] != 418.0 || up["body"].(map[string]any)["upstream"].(map[string]any)["status"] != 418.0 {
		t.Errorf("call: %v", up)
	}
	if closed := object(t, "get", url+"/close"); closed["status"] != 0.0 || closed["error"] == nil {
		t.Errorf("close: %v", closed)
	}
	if out, code := said(t, "get", url+"/status/503"); code != 1 || !strings.Contains(out, "pod-1") {
		t.Errorf("get of a 503 without --json: exit %d: %s", code, out)
	}
	loaded := object(t, "load", url+"/fail?share=1", "--rps", "100", "--duration", "200ms")
	if loaded["sent"] != 20.0 || loaded["statuses"].(map[string]any)["503"] != 20.0 || loaded["pods"].(map[string]any)["pod-1"] != 20.0 {
		t.Errorf("load: %v", loaded)
	}
	for _, more := range [][]string{nil, {"--stream"}} {
		if calls := object(t, "grpc", append(more, rpc, "-n", "7")...); calls["pods"].(map[string]any)["pod-1"] != 7.0 {
			t.Errorf("grpc %v: %v", more, calls)
		}
	}
	if out, code := said(t, "grpc-health", rpc); code != 0 || out != "SERVING\n" {
		t.Errorf("grpc-health: %d %q", code, out)
	}
	if spoken := object(t, "ws", "ws://"+web+"/ws", "-n", "3"); spoken["echoed"] != 3.0 {
		t.Errorf("ws: %v", spoken)
	}
	if out, code := said(t, "tcp", echo, "hello"); code != 0 || out != "hello\n" {
		t.Errorf("tcp: %d %q", code, out)
	}
	if heard := object(t, "banner", hello); heard["banner"] != "220 pod-1 ready" {
		t.Errorf("banner: %v", heard)
	}
	if peer := object(t, "tls", secure, "--alpn", "h2"); peer["subject"] != "CN=pod-1" || peer["alpn"] != "h2" {
		t.Errorf("tls: %v", peer)
	}
	if held := object(t, "conns", echo, "5", "--hold", "50ms"); held["open"] != 5.0 || held["closed"] != 0.0 {
		t.Errorf("conns: %v", held)
	}
}

func TestAReplicaFailsWhenItIsToldToAndSaysSoInGrpcToo(t *testing.T) {
	web, rpc, _, _, _ := started(t)
	url := "http://" + web
	object(t, "get", url+"/toggle?fail=true&ready=false")
	if a := object(t, "get", url+"/"); a["status"] != 503.0 {
		t.Errorf("%v", a)
	}
	if a := object(t, "get", url+"/healthz"); a["status"] != 503.0 {
		t.Errorf("%v", a)
	}
	if a := object(t, "grpc", rpc); a["errors"].(map[string]any)["Unavailable: told to fail"] != 1.0 {
		t.Errorf("%v", a)
	}
	object(t, "get", url+"/toggle?fail=false&ready=true")
	if a := object(t, "get", url+"/"); a["status"] != 200.0 {
		t.Errorf("%v", a)
	}
}

func TestClientsReportWhatTheyCannotReach(t *testing.T) {
	nobody := free(t)
	if a := object(t, "get", "http://"+nobody); a["status"] != 0.0 || a["error"] == nil {
		t.Errorf("%v", a)
	}
	if held := object(t, "conns", nobody, "2", "--hold", "0s"); held["open"] != 0.0 || held["closed"] != 2.0 {
		t.Errorf("%v", held)
	}
	loaded := object(t, "load", "http://"+nobody+"/", "--rps", "50", "--duration", "100ms")
	if loaded["sent"] != 5.0 || len(loaded["errors"].(map[string]any)) != 1 {
		t.Errorf("%v", loaded)
	}
}
