// The sandbox container of every pod: sleeps, and reaps what is orphaned.
package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for {
			var status syscall.WaitStatus
			if pid, _ := syscall.Wait4(-1, &status, 0, nil); pid <= 0 {
				time.Sleep(time.Second)
			}
		}
	}()
	<-stop
}
