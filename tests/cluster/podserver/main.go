// podserver is what runs in the pods of the tests: it answers everything it is asked with its pod's name.
//
//	podserver 8080/tcp 5353/udp
//	podserver ask udp 188.188.0.2:5353	prints the answer of another; fails if there is none within a second
//
// A TCP port speaks HTTP, so that the kubelet can probe it. It ends at once when the kubelet asks it to.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const patience = time.Second

func main() {
	if len(os.Args) == 4 && os.Args[1] == "ask" {
		ask(os.Args[2], os.Args[3])
		return
	}
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	for _, argument := range os.Args[1:] {
		port, protocol, _ := strings.Cut(argument, "/")
		switch protocol {
		case "tcp":
			go serveTCP(":"+port, name)
		case "udp":
			go serveUDP(":"+port, name)
		default:
			log.Fatalf("%s: give PORT/tcp or PORT/udp", argument)
		}
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM) // the first process of a container has no default for it
	<-ended
}

func ask(protocol, address string) {
	connection, err := net.DialTimeout(protocol, address, patience)
	if err != nil {
		log.Fatal(err)
	}
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		log.Fatal(err)
	}
	if _, err := io.WriteString(connection, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		log.Fatal(err)
	}
	answer := make([]byte, 1500)
	count, err := connection.Read(answer)
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(answer[:count])
}

func serveTCP(address, name string) {
	log.Fatal(http.ListenAndServe(address, http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(out, name)
	})))
}

func serveUDP(address, name string) {
	socket, err := net.ListenPacket("udp", address)
	if err != nil {
		log.Fatal(err)
	}
	asked := make([]byte, 1500)
	for {
		_, client, err := socket.ReadFrom(asked)
		if err != nil {
			log.Fatal(err)
		}
		if _, err := socket.WriteTo([]byte(name+"\n"), client); err != nil {
			log.Print(err)
		}
	}
}
