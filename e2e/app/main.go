// testapp is the traffic peer of the end-to-end tests: servers and clients made of libraries that are not ours (net/http, grpc-go,
// coder/websocket), in one static binary that needs no shell. `testapp help` lists what it does.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// A command parses its own flags and returns the exit code.
type command struct {
	usage string
	run   func(args []string) int
}

var commands map[string]command

func init() {
	commands = map[string]command{
		"serve":       {"[--http :8080] [--grpc :9000] [--tcp :7000] [--banner :2525] [--tls :8443] [--idle-timeout D] [--delay-start D] [--drain D]", serve},
		"get":         {"URL [-H k:v] [-X METHOD] [-d BODY] [-n N] [-c N] [--json]", get},
		"load":        {"URL --rps R --duration D [-c N] [--json]", load},
		"grpc":        {"ADDR [-n N] [-c N] [--stream] [--json]", grpcCalls},
		"grpc-health": {"ADDR", grpcHealth},
		"ws":          {"URL [--text T] [-n N] [--json]", ws},
		"tcp":         {"ADDR TEXT", tcpEcho},
		"banner":      {"ADDR [--json]", banner},
		"tls":         {"ADDR [--sni NAME] [--alpn P]", tlsPeer},
		"conns":       {"ADDR N [--hold D] [--http PATH] [--json]", conns},
		"job":         {"URL: one GET, exit 0 on 2xx", job},
		"lookup":      {"NAME: prints its addresses", lookup},
		"sleep":       {"[D]", sleep},
		"pause":       {"waits for SIGTERM and reaps children", pause},
		"cat":         {"FILE", cat},
		"version":     {"prints a line and exits 0", version},
	}
}

func main() {
	if len(os.Args) < 2 {
		os.Exit(pause(nil))
	}
	c, ok := commands[os.Args[1]]
	if !ok {
		fmt.Fprintln(os.Stderr, "usage: testapp COMMAND ...")
		for name, c := range commands {
			fmt.Fprintf(os.Stderr, "  %s %s\n", name, c.usage)
		}
		os.Exit(64)
	}
	os.Exit(c.run(os.Args[2:]))
}

// parse takes flags and arguments in any order and returns the arguments; it ends the process when there are not exactly n.
func parse(fs *flag.FlagSet, args []string, n int) []string {
	var rest []string
	for {
		if err := fs.Parse(args); err != nil {
			os.Exit(64)
		}
		if fs.NArg() == 0 {
			break
		}
		rest, args = append(rest, fs.Arg(0)), fs.Args()[1:]
	}
	if len(rest) != n {
		fmt.Fprintf(os.Stderr, "%s takes %d argument(s), got %d\n", fs.Name(), n, len(rest))
		os.Exit(64)
	}
	return rest
}

func flags(name string) *flag.FlagSet { return flag.NewFlagSet(name, flag.ContinueOnError) }

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func terminated() chan os.Signal {
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	return c
}

func sleep(args []string) int {
	d := 24 * time.Hour
	if len(args) > 0 {
		parsed, err := time.ParseDuration(args[0])
		if err != nil {
			return fail(err)
		}
		d = parsed
	}
	select {
	case <-terminated():
	case <-time.After(d):
	}
	return 0
}

// pause is also the sandbox of every pod: there it is the process that orphans fall to.
func pause([]string) int {
	stop, child := terminated(), make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	for {
		for {
			var status syscall.WaitStatus
			if pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
		select {
		case <-stop:
			return 0
		case <-child:
		}
	}
}

func cat(args []string) int {
	for _, name := range args {
		b, err := os.ReadFile(name)
		if err != nil {
			return fail(err)
		}
		os.Stdout.Write(b)
	}
	return 0
}

func version([]string) int {
	fmt.Println("testapp", envOr("VERSION", "dev"))
	return 0
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
