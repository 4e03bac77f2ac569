package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"
)

// tally counts what came back.
type tally struct {
	mu       sync.Mutex
	took     []float64      // ms since the moment the request was due, so that a stall is seen by all that it delays
	Sent     int            `json:"sent"`
	Statuses map[int]int    `json:"statuses"`
	Pods     map[string]int `json:"pods"`
	Versions map[string]int `json:"versions"`
	Reasons  map[string]int `json:"reasons"`
	Errors   map[string]int `json:"errors"`
	Seconds  float64        `json:"seconds"`
	P50      float64        `json:"p50_ms"`
	P90      float64        `json:"p90_ms"`
	P99      float64        `json:"p99_ms"`
	Max      float64        `json:"max_ms"`
}

func newTally() *tally {
	return &tally{Statuses: map[int]int{}, Pods: map[string]int{}, Versions: map[string]int{}, Reasons: map[string]int{}, Errors: map[string]int{}}
}

// Errors name the port that the client happened to use; without it the same failure is counted as the same.
var ephemeral = regexp.MustCompile(`:\d+->`)

func (t *tally) add(out outcome, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Sent++
	t.took = append(t.took, millis(took))
	if out.Error != nil {
		t.Errors[ephemeral.ReplaceAllString(*out.Error, ":*->")]++
		return
	}
	t.Statuses[out.Status]++
	for name, m := range map[string]map[string]int{"x-pod": t.Pods, "x-version": t.Versions, "weft-reason": t.Reasons} {
		if v := out.Headers[name]; v != "" {
			m[v]++
		}
	}
}

// close works out the percentiles and hands the counts over.
func (t *tally) close(seconds float64) {
	t.Seconds = seconds
	if len(t.took) == 0 {
		return
	}
	slices.Sort(t.took)
	at := func(p float64) float64 { return t.took[int(p*float64(len(t.took)-1))] }
	t.P50, t.P90, t.P99, t.Max = at(.5), at(.9), at(.99), at(1)
}

func (t *tally) print(asJSON bool) {
	if asJSON {
		json.NewEncoder(os.Stdout).Encode(t)
		return
	}
	fmt.Printf("sent %d in %.1fs  statuses %v  pods %v  versions %v  reasons %v  errors %v  p50 %.1fms p90 %.1fms p99 %.1fms max %.1fms\n",
		t.Sent, t.Seconds, t.Statuses, t.Pods, t.Versions, t.Reasons, t.Errors, t.P50, t.P90, t.P99, t.Max)
}

// load is an open loop: a request is due every 1/rps seconds, whether or not those before have been answered.
func load(args []string) int {
	var q request
	fs := flags("load")
	q.flags(fs)
	rps := fs.Float64("rps", 100, "requests a second")
	span := fs.Duration("duration", 10*time.Second, "0: until SIGTERM")
	workers := fs.Int("c", 64, "at most this many at the same time, and connections")
	report := fs.Duration("report", 0, "print counts of the last period this often")
	asJSON := fs.Bool("json", false, "print JSON")
	q.url = parse(fs, args, 1)[0]
	if *rps <= 0 {
		return fail(fmt.Errorf("--rps must be above 0"))
	}

	ctx, cancel := context.WithCancel(context.Background())
	stop := terminated()
	go func() { <-stop; cancel() }()
	c := q.client(*workers)
	due := make(chan time.Time, 1<<16) // what is late waits here, and is measured from when it was due
	counts, start := newTally(), time.Now()
	var mu sync.Mutex
	current := func() *tally { mu.Lock(); defer mu.Unlock(); return counts }

	var all sync.WaitGroup
	for range *workers {
		all.Go(func() {
			for at := range due {
				out := q.do(context.Background(), c)
				current().add(out, time.Since(at))
			}
		})
	}
	if *report > 0 {
		go func() {
			for range time.Tick(*report) {
				mu.Lock()
				old := counts
				counts = newTally()
				mu.Unlock()
				old.mu.Lock()
				old.close(report.Seconds())
				old.print(*asJSON)
				old.mu.Unlock()
			}
		}()
	}
	gap := time.Duration(float64(time.Second) / *rps)
	for next := start; ctx.Err() == nil && (*span == 0 || next.Sub(start) < *span); next = next.Add(gap) {
		if d := time.Until(next); d > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(d):
			}
		}
		select {
		case due <- next:
		case <-ctx.Done():
		}
	}
	close(due)
	all.Wait()
	last := current()
	last.close(time.Since(start).Seconds())
	last.print(*asJSON)
	return 0
}
