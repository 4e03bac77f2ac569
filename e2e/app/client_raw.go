package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

func ws(args []string) int {
	fs := flags("ws")
	text := fs.String("text", "hello", "message")
	n := fs.Int("n", 1, "messages")
	interval := fs.Duration("interval", 0, "pause between messages")
	asJSON := fs.Bool("json", false, "print JSON; exit 0 also on failure")
	url := parse(fs, args, 1)[0]
	var result struct {
		Echoed int      `json:"echoed"`
		Pod    string   `json:"pod"`
		Errors []string `json:"errors"`
	}
	result.Errors = []string{}
	run := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second+time.Duration(*n)*(*interval+time.Second))
		defer cancel()
		c, answer, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: &http.Client{
			Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}})
		if answer != nil {
			result.Pod = answer.Header.Get("x-pod")
		}
		if err != nil {
			if answer != nil && answer.Header.Get("weft-reason") != "" {
				err = fmt.Errorf("%w (weft-reason: %s)", err, answer.Header.Get("weft-reason"))
			}
			return err
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for range *n {
			if err := c.Write(ctx, websocket.MessageText, []byte(*text)); err != nil {
				return err
			}
			_, back, err := c.Read(ctx)
			if err != nil {
				return err
			}
			if string(back) != *text {
				return fmt.Errorf("got %q back", back)
			}
			result.Echoed++
			time.Sleep(*interval)
		}
		return c.Close(websocket.StatusNormalClosure, "")
	}
	if err := run(); err != nil {
		result.Errors = append(result.Errors, err.Error())
	}
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(result)
		return 0
	}
	fmt.Println("echoed", result.Echoed, "by", result.Pod, strings.Join(result.Errors, "; "))
	return min(len(result.Errors), 1)
}

// tcpEcho sends a text, prints what comes back until as many bytes are there, then closes its half and awaits the end of the other.
func tcpEcho(args []string) int {
	fs := flags("tcp")
	timeout := fs.Duration("timeout", 10*time.Second, "in all")
	a := parse(fs, args, 2)
	c, err := net.DialTimeout("tcp", a[0], *timeout)
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(*timeout))
	if _, err := io.WriteString(c, a[1]); err != nil {
		return fail(err)
	}
	back := make([]byte, len(a[1]))
	n, err := io.ReadFull(c, back)
	fmt.Println(string(back[:n]))
	if err != nil {
		return fail(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return fail(err)
	}
	if _, err := c.Read(back); err != io.EOF {
		return fail(fmt.Errorf("after our end of the stream: got %v, not the end of the other", err))
	}
	return 0
}

// banner says nothing and measures how long the server's first line takes, from before the connect.
func banner(args []string) int {
	fs := flags("banner")
	timeout := fs.Duration("timeout", 10*time.Second, "in all")
	asJSON := fs.Bool("json", false, "print JSON")
	addr := parse(fs, args, 1)[0]
	since := time.Now()
	c, err := net.DialTimeout("tcp", addr, *timeout)
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(*timeout))
	in := bufio.NewReader(c)
	if _, err := in.Peek(1); err != nil {
		return fail(err)
	}
	ms := millis(time.Since(since))
	line, err := in.ReadString('\n')
	if err != nil {
		return fail(err)
	}
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(map[string]any{"ms": ms, "banner": strings.TrimSpace(line)})
	} else {
		fmt.Printf("%.1f ms: %s\n", ms, strings.TrimSpace(line))
	}
	return 0
}

// tlsPeer prints who the server says it is, whether or not it then accepts us.
func tlsPeer(args []string) int {
	fs := flags("tls")
	sni := fs.String("sni", "", "server name (default: the host of ADDR)")
	alpn := fs.String("alpn", "", "protocols, comma separated")
	fs.Bool("json", true, "prints JSON in any case")
	addr := parse(fs, args, 1)[0]
	type peer struct {
		Subject string   `json:"subject"`
		Issuer  string   `json:"issuer"`
		DNS     []string `json:"dns"`
		URIs    []string `json:"uris"`
		ALPN    string   `json:"alpn"`
		Version string   `json:"version"`
		Error   string   `json:"error,omitempty"`
	}
	result := peer{DNS: []string{}, URIs: []string{}}
	config := &tls.Config{InsecureSkipVerify: true, ServerName: *sni, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
		leaf, err := x509.ParseCertificate(raw[0])
		if err != nil {
			return err
		}
		result.Subject, result.Issuer = leaf.Subject.String(), leaf.Issuer.String()
		result.DNS = append(result.DNS, leaf.DNSNames...)
		for _, u := range leaf.URIs {
			result.URIs = append(result.URIs, u.String())
		}
		return nil
	}}
	if *alpn != "" {
		config.NextProtos = strings.Split(*alpn, ",")
	}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, config)
	if err != nil {
		result.Error = err.Error()
	} else {
		defer c.Close()
		state := c.ConnectionState()
		result.ALPN, result.Version = state.NegotiatedProtocol, tls.VersionName(state.Version)
	}
	json.NewEncoder(os.Stdout).Encode(result)
	if result.Subject == "" && len(result.URIs) == 0 {
		return 1
	}
	return 0
}

// conns opens N connections, leaves them idle for a while, and says how many are still open then.
func conns(args []string) int {
	fs := flags("conns")
	hold := fs.Duration("hold", 10*time.Second, "how long")
	path := fs.String("http", "", "first make one keep-alive request for this path on each")
	asJSON := fs.Bool("json", false, "print JSON")
	a := parse(fs, args, 2)
	n, err := strconv.Atoi(a[1])
	if err != nil {
		return fail(err)
	}
	var mu sync.Mutex
	var live []net.Conn
	errors := map[string]int{}
	slots := make(chan struct{}, 64) // opened by so many at the same time, so that no backlog overflows
	var all sync.WaitGroup
	for range n {
		slots <- struct{}{}
		all.Go(func() {
			c, err := openOne(a[0], *path)
			<-slots
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errors[ephemeral.ReplaceAllString(err.Error(), ":*->")]++
				return
			}
			live = append(live, c)
		})
	}
	all.Wait()
	select {
	case <-time.After(*hold):
	case <-terminated():
	}
	open := 0
	for _, c := range live {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := c.Read(make([]byte, 1<<10))
		if e, ok := err.(net.Error); err == nil || ok && e.Timeout() {
			open++
		}
		c.Close()
	}
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(map[string]any{"open": open, "closed": n - open, "errors": errors})
	} else {
		fmt.Println(open, "open", n-open, "closed", errors)
	}
	return 0
}

func openOne(addr, path string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil || path == "" {
		return c, err
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nhost: %s\r\n\r\n", path, addr)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		c.Close()
		return nil, err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return c, err
}

func lookup(args []string) int {
	fs := flags("lookup")
	addrs, err := net.LookupHost(parse(fs, args, 1)[0])
	if err != nil {
		return fail(err)
	}
	for _, a := range addrs {
		fmt.Println(a)
	}
	return 0
}
