// A workload that knows SPIFFE and nothing of the programs under test: it gets its identity over the
// Workload API through go-spiffe and says on standard output what it got, a line a fact.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// A run that lasts longer is stuck: the test that started it has its own, shorter bounds.
const longest = 5 * time.Minute

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: peer serve|call|jwt|watch|ping|tokens|validate|admin|demo-server|demo-client SOCKET [ARG...], or peer bundle|get URL [ARG...]"))
	}
	socket := workloadapi.WithAddr("unix://" + os.Args[2])
	args := os.Args[3:]
	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(ctx, socket, args[0])
	case "call":
		err = call(ctx, socket, args[0], args[1])
	case "jwt":
		err = jwt(ctx, socket, args[0])
	case "watch":
		err = watch(ctx, socket)
	case "validate":
		err = validate(ctx, socket, args[0], args[1])
	case "admin":
		err = admin(ctx, socket, args[0], args[1], args[2])
	case "bundle":
		err = bundle(ctx, os.Args[2:])
	case "get":
		err = get(ctx, os.Args[2:])
	case "ping":
		err = ping(ctx, socket, args[0], args[1])
	case "tokens":
		err = tokens(ctx, socket, args[0])
	case "demo-server":
		err = demoServer(ctx, socket, args[0], args[1])
	case "demo-client":
		err = demoClient(ctx, socket, args[0], args[1])
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "error:", err)
	os.Exit(1)
}

// serve answers each line of each client whose SPIFFE ID is the allowed one, until it is ended.
func serve(ctx context.Context, socket workloadapi.ClientOption, allowed string) error {
	id, err := spiffeid.FromString(allowed)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(socket))
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id))
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return err
	}
	fmt.Println("listening", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go answer(connection.(*tls.Conn))
	}
}

func answer(connection *tls.Conn) {
	defer connection.Close()
	if err := connection.Handshake(); err != nil {
		fmt.Println("refused:", err)
		return
	}
	leaf := connection.ConnectionState().PeerCertificates[0]
	lines := bufio.NewScanner(connection)
	for lines.Scan() {
		fmt.Println("served", leaf.URIs[0], leaf.SerialNumber)
		fmt.Fprintf(connection, "%s to %s\n", lines.Text(), leaf.URIs[0])
	}
}

// call says one line to a server whose SPIFFE ID must be the expected one.
func call(ctx context.Context, socket workloadapi.ClientOption, address, expected string) error {
	id, err := spiffeid.FromString(expected)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(socket))
	if err != nil {
		return err
	}
	defer source.Close()
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{},
		Config:    tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id)),
	}
	connection, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer connection.Close()
	if _, err := fmt.Fprintln(connection, "hello"); err != nil {
		return err
	}
	reply, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Print("reply ", reply)
	return nil
}

// jwt fetches a token and has it judged twice: here, with the bundles of the Workload API, and by the agent.
func jwt(ctx context.Context, socket workloadapi.ClientOption, audience string) error {
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(socket))
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return err
	}
	fmt.Println("fetched", svid.ID, svid.Audience)
	own, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{audience})
	if err != nil {
		return err
	}
	fmt.Println("validated here", own.ID)
	theirs, err := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), audience, socket)
	if err != nil {
		return err
	}
	fmt.Println("validated there", theirs.ID)
	if _, err := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), audience+"-other", socket); err != nil {
		fmt.Println("other audience refused")
	}
	return nil
}

type watcher struct{}

func (watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	svid := c.DefaultSVID()
	leaf := svid.Certificates[0]
	bundle, _ := c.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	ids := ""
	for _, one := range c.SVIDs {
		ids += one.ID.String() + ","
	}
	fmt.Println("x509", svid.ID, leaf.SerialNumber, leaf.NotAfter.Unix(), "roots", len(bundle.X509Authorities()),
		"dns", leaf.DNSNames, "all", ids)
}

func (watcher) OnX509ContextWatchError(err error) { fmt.Println("x509 error", err) }

func (watcher) OnJWTBundlesUpdate(set *jwtbundle.Set) {
	for _, bundle := range set.Bundles() {
		fmt.Println("jwt", bundle.TrustDomain(), "keys", len(bundle.JWTAuthorities()))
	}
}

func (watcher) OnJWTBundlesWatchError(err error) { fmt.Println("jwt error", err) }

// watch prints each update of the X.509 and JWT bundle streams.
func watch(ctx context.Context, socket workloadapi.ClientOption) error {
	client, err := workloadapi.New(ctx, socket)
	if err != nil {
		return err
	}
	defer client.Close()
	go client.WatchJWTBundles(ctx, watcher{})
	return client.WatchX509Context(ctx, watcher{})
}

// What ping and tokens wait between two tries: short, so that a try falls into every moment of a rotation.
const pause = 20 * time.Millisecond

// ping makes one connection after the other to a server, each with a handshake of its own, and says which authorities
// signed for the two sides whenever that changes, and every failure.
func ping(ctx context.Context, socket workloadapi.ClientOption, address, expected string) error {
	id, err := spiffeid.FromString(expected)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(socket))
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id))
	last := ""
	for count := 0; ; count++ {
		signers, err := once(ctx, source, config, address)
		switch {
		case err != nil:
			fmt.Println("failed", count, err)
		case signers != last:
			fmt.Println("signed", count, signers)
			last = signers
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// once has one line answered, and names the authorities of both sides by their key IDs.
func once(ctx context.Context, source *workloadapi.X509Source, config *tls.Config, address string) (string, error) {
	svid, err := source.GetX509SVID()
	if err != nil {
		return "", err
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: config}
	connection, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	if _, err := fmt.Fprintln(connection, "ping"); err != nil {
		return "", err
	}
	if _, err := bufio.NewReader(connection).ReadString('\n'); err != nil {
		return "", err
	}
	theirs := connection.(*tls.Conn).ConnectionState().PeerCertificates
	return fmt.Sprintf("own %s peer %s", signers(svid.Certificates), signers(theirs)), nil
}

func signers(chain []*x509.Certificate) string {
	ids := ""
	for _, certificate := range chain {
		ids += fmt.Sprintf("%x,", certificate.AuthorityKeyId)
	}
	return ids
}

// tokens fetches and judges one token after the other and says which key signed whenever that changes, and every
// failure.
func tokens(ctx context.Context, socket workloadapi.ClientOption, audience string) error {
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(socket))
	if err != nil {
		return err
	}
	defer source.Close()
	last := ""
	for count := 0; ; count++ {
		svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
		if err == nil {
			_, err = jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{audience})
		}
		if err != nil {
			fmt.Println("failed", count, err)
		} else if kid := keyID(svid.Marshal()); kid != last {
			fmt.Println("signed", count, kid)
			last = kid
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// keyID is the key ID in a token's header.
func keyID(token string) string {
	header, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
	var fields struct {
		Kid string `json:"kid"`
	}
	if err != nil || json.Unmarshal(header, &fields) != nil {
		return "unreadable"
	}
	return fields.Kid
}
