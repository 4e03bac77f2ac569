package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// dial makes one connection, to the first address of the name: balancing is the mesh's work.
func dial(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithDisableServiceConfig())
}

type grpcTally struct {
	Pods     map[string]int `json:"pods"`
	Versions map[string]int `json:"versions"`
	Errors   map[string]int `json:"errors"`
	Reasons  map[string]int `json:"reasons"`
}

func grpcCalls(args []string) int {
	fs := flags("grpc")
	n := fs.Int64("n", 1, "calls")
	workers := fs.Int("c", 1, "at the same time, on the one connection")
	interval := fs.Duration("interval", 0, "a worker's pause between calls")
	timeout := fs.Duration("timeout", 10*time.Second, "of one call")
	stream := fs.Bool("stream", false, "one bidirectional stream for each worker, n messages over all")
	code := fs.Int("code", 0, "ask the server for this status code")
	asJSON := fs.Bool("json", false, "print JSON; exit 0 also when calls fail")
	conn, err := dial(parse(fs, args, 1)[0])
	if err != nil {
		return fail(err)
	}
	client := pb.NewTestServiceClient(conn)
	asked := &pb.EchoStatus{Code: int32(*code), Message: "as asked"}

	t := grpcTally{Pods: map[string]int{}, Versions: map[string]int{}, Errors: map[string]int{}, Reasons: map[string]int{}}
	var mu sync.Mutex
	count := func(pod, version string, trailer metadata.MD, err error) {
		mu.Lock()
		defer mu.Unlock()
		for _, reason := range trailer.Get("weft-reason") {
			t.Reasons[reason]++
		}
		if err != nil {
			t.Errors[status.Code(err).String()+": "+ephemeral.ReplaceAllString(status.Convert(err).Message(), ":*->")]++
			return
		}
		t.Pods[pod]++
		t.Versions[version]++
	}
	var left atomic.Int64
	left.Store(*n)
	var all sync.WaitGroup
	for range *workers {
		all.Go(func() {
			if *stream {
				pingPong(client, &left, *timeout, *interval, count)
				return
			}
			for left.Add(-1) >= 0 {
				ctx, cancel := context.WithTimeout(context.Background(), *timeout)
				var header, trailer metadata.MD
				a, err := client.UnaryCall(ctx, &pb.SimpleRequest{Payload: &pb.Payload{Body: []byte("hello")}, ResponseStatus: asked}, grpc.Header(&header), grpc.Trailer(&trailer))
				cancel()
				count(a.GetHostname(), a.GetUsername(), metadata.Join(header, trailer), err)
				time.Sleep(*interval)
			}
		})
	}
	all.Wait()
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(t)
		return 0
	}
	for pod, n := range t.Pods {
		fmt.Println(n, pod)
	}
	for text, n := range t.Errors {
		fmt.Println(n, text)
	}
	if len(t.Errors) > 0 {
		return 1
	}
	return 0
}

// pingPong sends and awaits one message after the other over one stream.
func pingPong(client pb.TestServiceClient, left *atomic.Int64, timeout, interval time.Duration, count func(pod, version string, trailer metadata.MD, err error)) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := client.FullDuplexCall(ctx)
	if err != nil {
		count("", "", nil, err)
		return
	}
	for left.Add(-1) >= 0 {
		watchdog := time.AfterFunc(timeout, cancel)
		err := s.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("hello")}})
		if err == nil {
			_, err = s.Recv()
		} else {
			_, err = s.Recv() // Send says only EOF; the status is here
		}
		watchdog.Stop()
		header, _ := s.Header()
		count(first(header, "pod"), first(header, "version"), s.Trailer(), err)
		if err != nil {
			return
		}
		time.Sleep(interval)
	}
	s.CloseSend()
	if _, err := s.Recv(); err != nil && status.Code(err) != codes.Unknown {
		count("", "", s.Trailer(), err)
	}
}

func first(md metadata.MD, name string) string {
	if v := md.Get(name); len(v) > 0 {
		return v[0]
	}
	return ""
}

func grpcHealth(args []string) int {
	fs := flags("grpc-health")
	service := fs.String("service", "", "name of the service")
	conn, err := dial(parse(fs, args, 1)[0])
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	a, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: *service})
	if err != nil {
		return fail(err)
	}
	fmt.Println(a.Status)
	if a.Status != healthpb.HealthCheckResponse_SERVING {
		return 1
	}
	return 0
}
