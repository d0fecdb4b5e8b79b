package billing

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// oneName is a DNS server that knows one name, whose address may be changed or taken away.
type oneName struct {
	net.PacketConn
	address atomic.Pointer[net.IP]
}

func startNames(t *testing.T) *oneName {
	t.Helper()
	listening, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &oneName{PacketConn: listening}
	t.Cleanup(func() { listening.Close() })
	go func() {
		question := make([]byte, 512)
		for {
			n, peer, err := listening.ReadFrom(question)
			if err != nil {
				return
			}
			listening.WriteTo(server.answer(question[:n]), peer)
		}
	}()
	return server
}

func (o *oneName) leadTo(address string) {
	ip := net.ParseIP(address).To4()
	o.address.Store(&ip)
}

func (o *oneName) answer(question []byte) []byte {
	end := 12 + bytes.IndexByte(question[12:], 0) + 5
	address, flags, count := o.address.Load(), 0x8183, uint16(0)
	record := []byte{0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4}
	if address != nil {
		flags = 0x8180
		if binary.BigEndian.Uint16(question[end-4:]) == 1 {
			record, count = append(record, *address...), 1
		}
	}
	answer := append(bytes.Clone(question[:2]), byte(flags>>8), byte(flags), 0, 1, 0, byte(count), 0, 0, 0, 0)
	answer = append(answer, question[12:end]...)
	if count == 1 {
		answer = append(answer, record...)
	}
	return answer
}

// refusing is a gRPC server that refuses every call: whoever reaches it gets ServerRefused.
func refusing(t *testing.T, address string) (port int, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(any, grpc.ServerStream) error { return status.Error(codes.PermissionDenied, "") }
	server := grpc.NewServer(grpc.UnknownServiceHandler(refuse))
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener.Addr().(*net.TCPAddr).Port, server.Stop
}

func dialName(t *testing.T, known *oneName, port int, transport credentials.TransportCredentials) *Client {
	t.Helper()
	target := fmt.Sprintf("dns://%s/billing.test:%d", known.LocalAddr(), port)
	connection, err := grpc.NewClient(target, DialOptions(transport)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return New(connection, Options{Timeout: 2 * time.Second})
}

func TestANameThatLeadsElsewhereIsSoonFollowed(t *testing.T) {
	t.Parallel()
	for _, missing := range []time.Duration{0, 8 * time.Second} {
		t.Run(fmt.Sprint("missing for ", missing), func(t *testing.T) {
			known := startNames(t)
			known.leadTo("127.0.0.2")
			port, stop := refusing(t, "127.0.0.2:0")
			client := dialName(t, known, port, insecure.NewCredentials())
			if answer := client.Resolve(context.Background(), ""); answer.Error != ServerRefused {
				t.Fatalf("%+v", answer)
			}
			stop()
			refusing(t, fmt.Sprintf("127.0.0.3:%d", port))
			known.address.Store(nil)
			for until := time.Now().Add(missing); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
				client.Resolve(context.Background(), "")
			}
			known.leadTo("127.0.0.3")
			for started := time.Now(); client.Resolve(context.Background(), "").Error != ServerRefused; time.Sleep(50 * time.Millisecond) {
				if time.Since(started) > 4*time.Second {
					t.Fatal("it still asks elsewhere")
				}
			}
		})
	}
}

func TestOnlyWhatIsEncryptedGoesThroughAProxy(t *testing.T) {
	// Go reads a proxy's variables once in a process, and takes no proxy for loopback's own names.
	const child = "BILLING_TEST_PROXY"
	if os.Getenv(child) == "" {
		alone := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		alone.Env = append(os.Environ(), child+"=yes")
		if said, err := alone.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, said)
		}
		return
	}
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	var seen atomic.Int32
	go func() {
		for {
			connection, err := proxy.Accept()
			if err != nil {
				return
			}
			seen.Add(1)
			connection.Close()
		}
	}()
	t.Setenv("HTTPS_PROXY", "http://"+proxy.Addr().String())
	t.Setenv("https_proxy", "http://"+proxy.Addr().String())
	known := startNames(t)
	known.leadTo("127.0.0.1")
	port, _ := refusing(t, "127.0.0.1:0")
	if answer := dialName(t, known, port, insecure.NewCredentials()).Resolve(context.Background(), ""); answer.Error != ServerRefused || seen.Load() != 0 {
		t.Errorf("%+v; the proxy saw %d connections", answer, seen.Load())
	}
	if dialName(t, known, port, credentials.NewTLS(nil)).Resolve(context.Background(), ""); seen.Load() == 0 {
		t.Error("TLS did not go through the proxy, so this test sees nothing")
	}
}

func TestAPeerThatHasVanishedIsNoticed(t *testing.T) {
	t.Parallel()
	port, _ := refusing(t, "127.0.0.1:0")
	var frozen atomic.Bool
	// A connection through here hangs for ever once it is frozen, and the next one works.
	through := func(ctx context.Context, _ string) (net.Conn, error) {
		frozen.Store(false)
		connection, err := new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		return &hanging{Conn: connection, frozen: &frozen}, err
	}
	pings := keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second} // gRPC allows no shorter time
	options := append(dialOptions(insecure.NewCredentials(), pings), grpc.WithContextDialer(through))
	connection, err := grpc.NewClient("passthrough:///relay", options...)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	client := New(connection, Options{Timeout: time.Second})
	if answer := client.Resolve(context.Background(), ""); answer.Error != ServerRefused {
		t.Fatalf("%+v", answer)
	}
	frozen.Store(true)
	for started := time.Now(); client.Resolve(context.Background(), "").Error != ServerRefused; {
		if time.Since(started) > 30*time.Second {
			t.Fatal("it still asks a peer that has vanished")
		}
	}
}

// hanging is a connection on which nothing arrives while it is frozen.
type hanging struct {
	net.Conn
	frozen *atomic.Bool
}

func (h *hanging) Read(into []byte) (int, error) {
	for {
		n, err := h.Conn.Read(into)
		if err != nil || !h.frozen.Load() {
			return n, err
		}
	}
}

func TestAnEmptyTargetIsRefusedAndNotDialledAsThisMachine(t *testing.T) {
	if client, err := Dial("", Credentials{}, Options{}); err == nil {
		t.Error("accepted")
		_ = client.Close()
	}
}
