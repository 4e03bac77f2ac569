package suites

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

// Opaque protocols, none of them named by the configuration: what they are is for the proxies to find out.

func TestRedis(t *testing.T) {
	server := free(t)
	start(t, server, "redis-server", "--port", port(server), "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir())
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		cli := func(t *testing.T, stdin string, args ...string) string {
			t.Helper()
			out, err := attempt(t, stdin, "redis-cli", append([]string{"-p", port(at)}, args...)...)
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return out
		}
		t.Run(way+"/commands", func(t *testing.T) {
			cli(t, "", "set", "key", "value")
			if got := cli(t, "", "get", "key"); got != "value\n" {
				t.Error(got)
			}
			big := strings.Repeat("v", 2_000_000)
			cli(t, big, "-x", "set", "big")
			if got := cli(t, "", "get", "big"); got != big+"\n" {
				t.Errorf("%d bytes came back", len(got))
			}
		})
		t.Run(way+"/mass insertion", func(t *testing.T) {
			var commands strings.Builder
			for n := range 5000 {
				fmt.Fprintf(&commands, "SET many:%d %d\r\n", n, n)
			}
			if got := cli(t, commands.String(), "--pipe"); !strings.Contains(got, "errors: 0, replies: 5000") {
				t.Error(got)
			}
		})
		t.Run(way+"/redis-benchmark", func(t *testing.T) {
			out := run(t, "redis-benchmark", "-p", port(at), "-n", "3000", "-c", "20", "-P", "8", "-q", "-t", "ping,set,get,lpush,mset")
			if strings.Contains(strings.ToLower(out), "error") || strings.Count(out, "requests per second") < 6 {
				t.Error(out)
			}
		})
	}
}

func TestPostgres(t *testing.T) {
	server, dir := free(t), shared(t)
	data := filepath.Join(dir, "data")
	// It refuses to run as root.
	as := func(name string, args ...string) (string, []string) { return name, args }
	if me, _ := user.Current(); me.Uid == "0" {
		as = func(name string, args ...string) (string, []string) {
			return "runuser", append([]string{"-u", "postgres", "--", found(t, name)}, args...)
		}
	}
	initdb, args := as("initdb", "-D", data, "-A", "trust", "-U", "weft", "--no-sync")
	run(t, initdb, args...)
	key, certificate := selfSigned(t, "localhost")
	for _, name := range []string{"server.key", "server.crt"} {
		from := map[string]string{"server.key": key, "server.crt": certificate}[name]
		bytes, _ := os.ReadFile(from)
		write(t, filepath.Join(data, name), bytes)
		os.Chmod(filepath.Join(data, name), 0o600)
		if owner, err := user.Lookup("postgres"); err == nil && initdb == "runuser" {
			exec.Command("chown", owner.Uid, filepath.Join(data, name)).Run()
		}
	}
	postgres, args := as("postgres", "-D", data, "-p", port(server), "-h", "127.0.0.1", "-k", dir, "-F", "-c", "ssl=on")
	start(t, server, postgres, args...)
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		for _, mode := range []string{"disable", "require"} {
			t.Run(way+"/ssl "+mode, func(t *testing.T) {
				url := fmt.Sprintf("postgresql://weft@127.0.0.1:%s/postgres?sslmode=%s", port(at), mode)
				got := run(t, "psql", "-XAtq", url, "-c", "select ssl from pg_stat_ssl where pid = pg_backend_pid()", "-c", "select length(repeat('x', 3000000))")
				if want := map[string]string{"disable": "f", "require": "t"}[mode] + "\n3000000\n"; got != want {
					t.Errorf("%q", got)
				}
				run(t, "pgbench", "-i", "-q", "-s", "1", url)
				out := run(t, "pgbench", "-c", "4", "-t", "25", "-n", url)
				if !strings.Contains(out, "100/100") || !strings.Contains(out, "failed transactions: 0") {
					t.Error(out)
				}
			})
		}
	}
}

// The server speaks first.
func TestMariaDB(t *testing.T) {
	server, dir := free(t), shared(t)
	data := filepath.Join(dir, "data")
	run(t, "mariadb-install-db", "--no-defaults", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db", "--user=mysql")
	start(t, server, "mariadbd", "--no-defaults", "--datadir="+data, "--user=mysql", "--port="+port(server), "--bind-address=127.0.0.1",
		"--socket="+filepath.Join(dir, "sock"), "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0", "--max-allowed-packet=16M")
	run(t, "mariadb", "--no-defaults", "-uroot", "-S"+filepath.Join(dir, "sock"), "-e", "create user weft identified by 'secret'; grant all on *.* to weft; create database shop")
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		t.Run(way, func(t *testing.T) {
			sql := func(statement string) string {
				return run(t, "mariadb", "--no-defaults", "-h127.0.0.1", "-P"+port(at), "-uweft", "-psecret", "--max-allowed-packet=16M", "-N", "shop", "-e", statement)
			}
			// The second and third time it is known who speaks first.
			for range 3 {
				if got := sql("select 6*7"); got != "42\n" {
					t.Error(got)
				}
			}
			sql("create or replace table t (n int, v text); insert into t select seq, repeat('v', 100) from seq_1_to_5000")
			if got := sql("select count(*), sum(n) from t"); got != "5000\t12502500\n" {
				t.Error(got)
			}
			if got := sql("select v from t"); strings.Count(got, "\n") != 5000 {
				t.Errorf("%d bytes", len(got))
			}
		})
	}
}

// The server speaks first.
func TestSMTP(t *testing.T) {
	server, dir := free(t), t.TempDir()
	host, number, _ := net.SplitHostPort(server)
	start(t, server, "/usr/bin/python3", "-m", "aiosmtpd", "-n", "-c", "aiosmtpd.handlers.Mailbox", "-l", host+":"+number, filepath.Join(dir, "mail"))
	message := filepath.Join(dir, "message")
	write(t, message, []byte("Subject: hello\r\n\r\n"+strings.Repeat("A line of the mail.\r\n", 20_000)))
	for way, at := range behind(t, server, "mesh", "outbound", "inbound") {
		t.Run(way+"/swaks", func(t *testing.T) {
			out := run(t, "swaks", "--server", at, "--from", "a@shop.test", "--to", "b@shop.test", "--timeout", "20")
			if !strings.Contains(out, "250 OK") {
				t.Error(out)
			}
		})
		t.Run(way+"/curl", func(t *testing.T) {
			run(t, "curl", "-sS", "--max-time", "20", "smtp://"+at, "--mail-from", "a@shop.test", "--mail-rcpt", "b@shop.test", "-T", message)
		})
	}
	mails, _ := os.ReadDir(filepath.Join(dir, "mail", "new"))
	if len(mails) != 6 {
		t.Errorf("%d of 6 mails came", len(mails))
	}
}
