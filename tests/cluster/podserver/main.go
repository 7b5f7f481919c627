// podserver is what runs in the pods of the tests: it answers everything it is asked with its pod's name.
//
//	podserver 8080/tcp 5353/udp
//	podserver ask udp 188.188.0.2:5353	prints the answer of another; fails if there is none within a second
//	podserver ping 188.188.0.2	sends two requests; fails if neither is answered within a second
//
// A TCP port speaks HTTP, so that the kubelet can probe it. It ends at once when the kubelet asks it to.
package main

import (
	"bytes"
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

const (
	patience = time.Second
	pings    = 2
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "ask" {
		ask(os.Args[2], os.Args[3])
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "ping" {
		ping(net.ParseIP(os.Args[2]))
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

// ping speaks RFC 792 and RFC 4443; of the latter the kernel writes the checksum.
func ping(address net.IP) {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if address.To4() == nil {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	socket, err := net.ListenPacket(network, "")
	if err != nil {
		log.Fatal(err)
	}
	echo := []byte{request, 0, 0, 0, byte(os.Getpid() >> 8), byte(os.Getpid()), 0, 0}
	for sequence := byte(1); sequence <= pings; sequence++ {
		echo[7], echo[2], echo[3] = sequence, 0, 0
		checksum := checksum(echo)
		echo[2], echo[3] = byte(checksum>>8), byte(checksum)
		if _, err := socket.WriteTo(echo, &net.IPAddr{IP: address}); err != nil {
			log.Fatal(err)
		}
	}
	if err := socket.SetDeadline(time.Now().Add(patience)); err != nil {
		log.Fatal(err)
	}
	received, heard := 0, make([]byte, 1500)
	for received < pings {
		count, sender, err := socket.ReadFrom(heard)
		if err != nil {
			break
		}
		theirs := sender.(*net.IPAddr).IP
		if theirs.Equal(address) && count == len(echo) && heard[0] == reply && bytes.Equal(heard[4:6], echo[4:6]) {
			received++
		}
	}
	fmt.Printf("%d packets transmitted, %d packets received\n", pings, received)
	if received == 0 {
		os.Exit(1)
	}
}

// checksum is RFC 1071's of an even number of bytes.
func checksum(data []byte) uint16 {
	sum := uint32(0)
	for at := 0; at < len(data); at += 2 {
		sum += uint32(data[at])<<8 | uint32(data[at+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
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
