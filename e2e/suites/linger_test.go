package suites

import (
	"io"
	"net"
	"time"
)

// lingering closes its connections in order: with unread bytes a plain close is a reset (RFC 1122 section 4.2.2.13), which
// a peer may see before the answer (RFC 9112 section 9.6).
type lingering struct{ net.Listener }

func (l lingering) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lingeringConn{c.(*net.TCPConn)}, nil
}

type lingeringConn struct{ *net.TCPConn }

func (c *lingeringConn) Close() error {
	c.CloseWrite()
	go func() {
		c.SetReadDeadline(time.Now().Add(time.Second))
		io.Copy(io.Discard, c.TCPConn)
		c.TCPConn.Close()
	}()
	return nil
}
