package main

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"sync"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
)

// traces is a collector: POST /v1/traces takes spans by OTLP over HTTP, as OpenTelemetry's own types read them; GET tells what came.
type traces struct {
	mutex sync.Mutex
	spans []span
}

// span is what tests look at.
type span struct {
	Service    string         `json:"service"`
	Pod        string         `json:"pod"`
	Trace      string         `json:"trace"`
	ID         string         `json:"id"`
	Parent     string         `json:"parent"`
	Name       string         `json:"name"`
	Kind       string         `json:"kind"`
	Status     string         `json:"status"`
	Attributes map[string]any `json:"attributes"`
}

const keptSpans = 10_000

func (t *traces) take(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(io.LimitReader(q.Body, 16<<20))
	request := new(collector.ExportTraceServiceRequest)
	if err == nil {
		err = proto.Unmarshal(body, request)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, of := range request.ResourceSpans {
		resource := attributes(of.GetResource().GetAttributes())
		service, _ := resource["service.name"].(string)
		pod, _ := resource["k8s.pod.name"].(string)
		for _, scope := range of.ScopeSpans {
			for _, s := range scope.Spans {
				if len(t.spans) < keptSpans {
					t.spans = append(t.spans, span{Service: service, Pod: pod, Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId),
						Parent: hex.EncodeToString(s.ParentSpanId), Name: s.Name, Kind: s.Kind.String(), Status: s.GetStatus().GetCode().String(),
						Attributes: attributes(s.Attributes)})
				}
			}
		}
	}
	answer, _ := proto.Marshal(new(collector.ExportTraceServiceResponse))
	w.Header().Set("content-type", "application/x-protobuf")
	w.Write(answer)
}

func (t *traces) tell(w http.ResponseWriter, _ *http.Request) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	w.Header().Set("content-type", "application/json")
	json.NewEncoder(w).Encode(append([]span{}, t.spans...))
}

func attributes(all []*common.KeyValue) map[string]any {
	found := map[string]any{}
	for _, one := range all {
		switch value := one.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			found[one.Key] = value.StringValue
		case *common.AnyValue_IntValue:
			found[one.Key] = value.IntValue
		case *common.AnyValue_BoolValue:
			found[one.Key] = value.BoolValue
		}
	}
	return found
}
