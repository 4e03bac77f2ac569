package main

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// echo is grpc-go's own test service: it returns the payload, says its pod as hostname, and answers with the status it is asked for.
type echo struct {
	pb.UnimplementedTestServiceServer
	*replica
}

func (r *replica) grpcServer(options ...grpc.ServerOption) (*grpc.Server, *health.Server) {
	s, h := grpc.NewServer(options...), health.NewServer()
	pb.RegisterTestServiceServer(s, echo{replica: r})
	healthpb.RegisterHealthServer(s, h)
	return s, h
}

// admit counts the call and applies what the replica was told to do wrong.
func (e echo) admit(ctx context.Context, asked *pb.EchoStatus) error {
	e.count.Add(1)
	grpc.SetTrailer(ctx, metadata.Pairs("pod", e.pod, "version", e.version))
	if d := e.delay.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
	if e.failing.Load() {
		return status.Error(codes.Unavailable, "told to fail")
	}
	if asked.GetCode() != 0 {
		return status.Error(codes.Code(asked.GetCode()), asked.GetMessage())
	}
	return nil
}

func (e echo) EmptyCall(ctx context.Context, _ *pb.Empty) (*pb.Empty, error) {
	return &pb.Empty{}, e.admit(ctx, nil)
}

func (e echo) UnaryCall(ctx context.Context, q *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	if err := e.admit(ctx, q.ResponseStatus); err != nil {
		return nil, err
	}
	return &pb.SimpleResponse{Payload: q.Payload, Hostname: e.pod, ServerId: e.pod, Username: e.version}, nil
}

// StreamingOutputCall sends a payload for each asked size, with its pauses.
func (e echo) StreamingOutputCall(q *pb.StreamingOutputCallRequest, s grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	if err := e.admit(s.Context(), q.ResponseStatus); err != nil {
		return err
	}
	for _, p := range q.ResponseParameters {
		time.Sleep(time.Duration(p.IntervalUs) * time.Microsecond)
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, p.Size)}}); err != nil {
			return err
		}
	}
	return nil
}

func (e echo) StreamingInputCall(s grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	if err := e.admit(s.Context(), nil); err != nil {
		return err
	}
	sum := 0
	for {
		q, err := s.Recv()
		if err == io.EOF {
			return s.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: int32(sum)})
		}
		if err != nil {
			return err
		}
		sum += len(q.GetPayload().GetBody())
	}
}

// FullDuplexCall echoes each message as it comes; the pod is in the header.
func (e echo) FullDuplexCall(s grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	s.SendHeader(metadata.Pairs("pod", e.pod, "version", e.version))
	if err := e.admit(s.Context(), nil); err != nil {
		return err
	}
	for {
		q, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if code := q.GetResponseStatus().GetCode(); code != 0 {
			return status.Error(codes.Code(code), q.ResponseStatus.Message)
		}
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: q.Payload}); err != nil {
			return err
		}
	}
}
