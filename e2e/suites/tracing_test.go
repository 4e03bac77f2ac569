// Traces as OpenTelemetry itself sees them: a client and a server that its SDK for Go instruments, two proxies between them, and
// what these tell as the OpenTelemetry Collector's own code reads it. Every span of a request is one trace, in one line of parents.
package suites

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// collected is what proxies have told, by the service's name.
type collected struct {
	mutex sync.Mutex
	spans map[string][]ptrace.Span
}

func (c *collected) take(w http.ResponseWriter, q *http.Request) {
	body, _ := io.ReadAll(q.Body)
	request := ptraceotlp.NewExportRequest()
	if err := request.UnmarshalProto(body); err != nil || q.URL.Path != "/v1/traces" {
		http.Error(w, "not spans", http.StatusBadRequest)
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, of := range request.Traces().ResourceSpans().All() {
		name, _ := of.Resource().Attributes().Get("service.name")
		for _, scope := range of.ScopeSpans().All() {
			for _, span := range scope.Spans().All() {
				c.spans[name.AsString()] = append(c.spans[name.AsString()], span)
			}
		}
	}
	answer, _ := ptraceotlp.NewExportResponse().MarshalProto()
	w.Header().Set("content-type", "application/x-protobuf")
	w.Write(answer)
}

// of waits until a service has told of n spans.
func (c *collected) of(t *testing.T, service string, n int) []ptrace.Span {
	t.Helper()
	for range 500 {
		c.mutex.Lock()
		spans := append([]ptrace.Span{}, c.spans[service]...)
		c.mutex.Unlock()
		if len(spans) >= n {
			return spans
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s has not told of %d spans", service, n)
	return nil
}

func TestOpenTelemetry(t *testing.T) {
	told := &collected{spans: map[string][]ptrace.Span{}}
	t.Setenv("WEFT_COLLECTOR", serve(t, true, false, told.take))
	w3c := propagation.TraceContext{}
	instrumented := func(sampler sdk.Sampler) (*tracetest.SpanRecorder, []otelhttp.Option) {
		recorder := tracetest.NewSpanRecorder()
		provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder), sdk.WithSampler(sampler))
		t.Cleanup(func() { provider.Shutdown(context.Background()) })
		return recorder, []otelhttp.Option{otelhttp.WithTracerProvider(provider), otelhttp.WithPropagators(w3c)}
	}
	for _, http2 := range []bool{false, true} {
		server, options := instrumented(sdk.ParentBased(sdk.NeverSample()))
		app := otelhttp.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }), "app", options...)
		way := "traced"
		if http2 {
			way = "traced/http2"
		}
		at := behind(t, serve(t, !http2, http2, app.ServeHTTP), way)
		call := func(sampler sdk.Sampler) *tracetest.SpanRecorder {
			client, options := instrumented(sampler)
			protocols := new(http.Protocols)
			protocols.SetHTTP1(!http2)
			protocols.SetUnencryptedHTTP2(http2)
			transport := &http.Transport{Protocols: protocols}
			defer transport.CloseIdleConnections()
			asker := http.Client{Transport: otelhttp.NewTransport(transport, options...)}
			answer, err := asker.Get("http://" + at[way] + "/cart?secret=1")
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
			return client
		}
		// A caller that tells nobody: nobody does.
		call(sdk.NeverSample())
		client := call(sdk.AlwaysSample())
		fronts, backs := told.of(t, "front", 1), told.of(t, "back", 1)
		front, back := fronts[len(fronts)-1], backs[len(backs)-1]
		for range 100 {
			if len(server.Ended()) > 0 && len(client.Ended()) > 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if len(client.Ended()) != 1 || len(server.Ended()) != 1 {
			t.Fatalf("http2 %v: %d spans of the client, %d of the server", http2, len(client.Ended()), len(server.Ended()))
		}
		asked, answered := client.Ended()[0].SpanContext(), server.Ended()[0]
		for i, same := range []bool{
			[16]byte(asked.TraceID()) == front.TraceID(), front.TraceID() == back.TraceID(),
			[16]byte(answered.SpanContext().TraceID()) == back.TraceID(),
			[8]byte(asked.SpanID()) == front.ParentSpanID(), front.SpanID() == back.ParentSpanID(),
			[8]byte(answered.Parent().SpanID()) == back.SpanID(),
			front.Kind() == ptrace.SpanKindClient, back.Kind() == ptrace.SpanKindServer,
			front.EndTimestamp() >= front.StartTimestamp(), front.Status().Code() == ptrace.StatusCodeUnset,
		} {
			if !same {
				t.Errorf("http2 %v: claim %d does not hold:\n%v\n%v\n%v\n%v", http2, i, asked, front, back, answered.SpanContext())
			}
		}
		for _, span := range []ptrace.Span{front, back} {
			path, _ := span.Attributes().Get("url.path")
			status, _ := span.Attributes().Get("http.response.status_code")
			if path.AsString() != "/cart" || status.Int() != 200 {
				t.Errorf("http2 %v: %v", http2, span.Attributes().AsRaw())
			}
		}
		if len(fronts) != 1 || len(backs) != 1 {
			t.Errorf("http2 %v: %d and %d spans", http2, len(fronts), len(backs))
		}
		told.mutex.Lock()
		clear(told.spans)
		told.mutex.Unlock()
	}
}
