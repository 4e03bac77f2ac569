package suites

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
)

// Two implementations, coder's as the client and gorilla's as the server, and cases after the chapters of the Autobahn test
// suite (which needs Python 2): framing, pings, reserved bits, opcodes, fragmentation, UTF-8, closing, limits, compression.
// Cases that break the protocol are written as bytes: the server's verdict on them must come through.

func gorillaEcho(t *testing.T) string {
	upgrader := gorilla.Upgrader{EnableCompression: true, Subprotocols: []string{"echo.test"}}
	return serve(t, true, false, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refused" {
			http.Error(w, "not here", http.StatusForbidden)
			return
		}
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		if r.URL.Path == "/hello" {
			c.WriteMessage(gorilla.TextMessage, []byte("the server speaks first"))
		}
		for {
			kind, message, err := c.ReadMessage()
			if err != nil {
				return
			}
			c.WriteMessage(kind, message)
		}
	})
}

func TestWebSocket(t *testing.T) {
	server := gorillaEcho(t)
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		dial := func(t *testing.T, path string, options *coder.DialOptions) (*coder.Conn, context.Context) {
			t.Helper()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			t.Cleanup(cancel)
			c, _, err := coder.Dial(ctx, "ws://"+at+path, options)
			if err != nil {
				t.Fatal(err)
			}
			c.SetReadLimit(64 << 20)
			t.Cleanup(func() { c.CloseNow() })
			return c, ctx
		}
		echoes := func(t *testing.T, c *coder.Conn, ctx context.Context, kind coder.MessageType, message []byte) {
			t.Helper()
			if err := c.Write(ctx, kind, message); err != nil {
				t.Fatal(err)
			}
			got, back, err := c.Read(ctx)
			if err != nil || got != kind || !bytes.Equal(back, message) {
				t.Fatalf("%d bytes: %v, %d bytes came back", len(message), err, len(back))
			}
		}
		for name, compression := range map[string]coder.CompressionMode{
			"plain": coder.CompressionDisabled, "deflate": coder.CompressionContextTakeover, "deflate anew": coder.CompressionNoContextTakeover,
		} {
			t.Run(way+"/sizes/"+name, func(t *testing.T) {
				c, ctx := dial(t, "/", &coder.DialOptions{CompressionMode: compression, Subprotocols: []string{"echo.test"}})
				if c.Subprotocol() != "echo.test" {
					t.Error("the subprotocol was lost")
				}
				// Around each of the three encodings of the length (RFC 6455 section 5.2), and past every buffer.
				for _, size := range []int{0, 1, 125, 126, 127, 128, 65535, 65536, 65537, 1 << 20, 8 << 20} {
					message := make([]byte, size)
					rand.Read(message)
					echoes(t, c, ctx, coder.MessageBinary, message)
					echoes(t, c, ctx, coder.MessageText, bytes.Repeat([]byte("é"), size/2))
				}
				if err := c.Close(4999, "enough"); err != nil {
					t.Error(err)
				}
			})
		}
		t.Run(way+"/pings", func(t *testing.T) {
			c, ctx := dial(t, "/", nil)
			reading := c.CloseRead(ctx)
			for range 50 {
				if err := c.Ping(reading); err != nil {
					t.Fatal(err)
				}
			}
		})
		t.Run(way+"/the server speaks first", func(t *testing.T) {
			c, ctx := dial(t, "/hello", nil)
			if _, got, err := c.Read(ctx); err != nil || string(got) != "the server speaks first" {
				t.Error(err, string(got))
			}
		})
		t.Run(way+"/both ways at once", func(t *testing.T) {
			c, ctx := dial(t, "/", nil)
			go func() {
				for n := range 2000 {
					c.Write(ctx, coder.MessageText, fmt.Appendf(nil, "%d %s", n, strings.Repeat("x", n)))
				}
			}()
			for n := range 2000 {
				_, got, err := c.Read(ctx)
				if err != nil || !strings.HasPrefix(string(got), fmt.Sprintf("%d ", n)) {
					t.Fatalf("message %d: %v", n, err)
				}
			}
		})
		t.Run(way+"/many connections", func(t *testing.T) {
			var open []*coder.Conn
			for range 50 {
				c, _ := dial(t, "/", nil)
				open = append(open, c)
			}
			for n, c := range open {
				echoes(t, c, context.Background(), coder.MessageText, fmt.Append(nil, n))
			}
		})
		t.Run(way+"/idle and on", func(t *testing.T) {
			c, ctx := dial(t, "/", nil)
			time.Sleep(1500 * time.Millisecond)
			echoes(t, c, ctx, coder.MessageText, []byte("still there"))
		})
		t.Run(way+"/refused", func(t *testing.T) {
			_, response, err := coder.Dial(context.Background(), "ws://"+at+"/refused", nil)
			if err == nil || response == nil || response.StatusCode != http.StatusForbidden {
				t.Error(err, response)
			}
		})
		for _, test := range []struct {
			name  string
			bytes []byte
			code  uint16
		}{
			{"orderly close", frame(0x88, []byte{0x03, 0xe8}), 1000},
			{"close with an application's code", frame(0x88, append([]byte{0x0b, 0xb8}, "reason"...)), 3000},
			{"close without a code", frame(0x88, nil), 1005},
			{"reserved opcode", frame(0x83, nil), 1002},
			{"reserved bit", frame(0xa1, []byte("x")), 1002},
			{"long ping", frame(0x89, make([]byte, 126)), 1002},
			{"fragmented ping", frame(0x09, []byte("x")), 1002},
			{"continuation of nothing", frame(0x80, []byte("x")), 1002},
			{"text inside of a fragmented text", append(frame(0x01, []byte("x")), frame(0x81, []byte("y"))...), 1002},
			{"unmasked", []byte{0x81, 1, 'x'}, 1002},
			{"invalid code", frame(0x88, []byte{0x03, 0xec}), 1002},
			{"reason that is no UTF-8", frame(0x88, []byte{0x03, 0xe8, 0xff}), 1002},
		} {
			for _, step := range []int{1, 1000} {
				t.Run(fmt.Sprintf("%s/%s/%d bytes at a time", way, test.name, step), func(t *testing.T) {
					c, read := upgraded(t, at)
					for at := 0; at < len(test.bytes); at += step {
						c.Write(test.bytes[at:min(at+step, len(test.bytes))])
					}
					head := make([]byte, 2)
					if _, err := io.ReadFull(read, head); err != nil || head[0] != 0x88 {
						t.Fatal("no close frame: ", err, head)
					}
					body := make([]byte, head[1])
					io.ReadFull(read, body)
					code := uint16(1005)
					if len(body) >= 2 {
						code = binary.BigEndian.Uint16(body)
					}
					if code != test.code {
						t.Errorf("%d, not %d", code, test.code)
					}
					// And the server's end of the connection.
					if rest, err := io.ReadAll(read); err != nil || len(rest) > 0 {
						t.Error(err, rest)
					}
				})
			}
		}
		t.Run(way+"/fragments a byte at a time, pings between them", func(t *testing.T) {
			c, read := upgraded(t, at)
			sent := append(frame(0x01, []byte("frag")), frame(0x89, []byte("ping"))...)
			sent = append(append(sent, frame(0x00, nil)...), frame(0x80, []byte("ments"))...)
			for _, b := range sent {
				c.Write([]byte{b})
			}
			wanted := "\x8a\x04ping\x81\x09fragments"
			got := make([]byte, len(wanted))
			if _, err := io.ReadFull(read, got); err != nil || string(got) != wanted {
				t.Errorf("%v %q", err, got)
			}
		})
		t.Run(way+"/a first frame in the same packet as the handshake", func(t *testing.T) {
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			c.Write(append([]byte(handshake), frame(0x81, []byte("early"))...))
			read := answered(t, c)
			got := make([]byte, 7)
			// Gorilla refuses such a client (it hijacks a connection that has bytes): then the refusal must come through.
			if _, err := io.ReadFull(read, got); err == nil && string(got) != "\x81\x05early" {
				t.Errorf("%q", got)
			}
		})
	}
}

const handshake = "GET / HTTP/1.1\r\nHost: ws.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// upgraded is a connection after the handshake, to write frames to.
func upgraded(t *testing.T, at string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, handshake)
	read := answered(t, c)
	return c, read
}

// answered reads the server's answer to the handshake (RFC 6455 section 1.3 has this key and its answer).
func answered(t *testing.T, c net.Conn) *bufio.Reader {
	t.Helper()
	read := bufio.NewReader(c)
	response, err := http.ReadResponse(read, nil)
	if err != nil || response.StatusCode != 101 || response.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatal(err, response)
	}
	return read
}

// frame is a masked frame of RFC 6455 section 5.2.
func frame(first byte, payload []byte) []byte {
	out := []byte{first, 0x80 | byte(min(len(payload), 126))}
	if len(payload) >= 126 {
		out = binary.BigEndian.AppendUint16(out, uint16(len(payload)))
	}
	mask := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	out = append(out, mask[:]...)
	for n, b := range payload {
		out = append(out, b^mask[n%4])
	}
	return out
}
