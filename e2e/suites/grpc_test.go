package suites

import "testing"

// All cases of grpc-go's interop client that need nothing but a server. Left out: those that ask for Google's credentials,
// and three (pick_first_unary, orca_per_rpc, orca_oob) that this server does not serve to a client without a proxy either.
var interopCases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
	"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message",
	"special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service", "rpc_soak", "channel_soak",
}

func TestGrpcInterop(t *testing.T) {
	client := tool(t, "google.golang.org/grpc/interop/client")
	server := free(t)
	start(t, server, tool(t, "google.golang.org/grpc/interop/server"), "-port", port(server))
	for way, at := range behind(t, server, "mesh", "outbound") {
		for _, name := range interopCases {
			t.Run(way+"/"+name, func(t *testing.T) {
				run(t, client, "-server_host", "127.0.0.1", "-server_port", port(at), "-test_case", name,
					"-soak_iterations", "60", "-soak_min_time_ms_between_rpcs", "0", "-soak_num_threads", "4",
					"-soak_per_iteration_max_acceptable_latency_ms", "10000")
			})
		}
	}
}
