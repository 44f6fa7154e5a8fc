package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// The two services of the demo of 2025: an HTTPS server that greets its clients by their SPIFFE IDs, and a client. They say what they
// do as those did. Those logged the handshake instead of verifying it; these do both, and know whom they talk to.

type watched struct {
	name   string
	config *tls.Config
}

// watch has each certificate of the other side told before it is verified.
func (w watched) watch() {
	verify := w.config.VerifyPeerCertificate
	w.config.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) error {
		log.Printf("[%s] VerifyPeerCertificate called with %d certs", w.name, len(raw))
		return verify(raw, chains)
	}
}

func source(ctx context.Context, name string, socket workloadapi.ClientOption) (*workloadapi.X509Source, error) {
	log.SetOutput(os.Stdout)
	log.Printf("[%s] Creating X509Source (SPIFFE Workload API client)...", name)
	return workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(socket))
}

// demoServer answers clients with the allowed SPIFFE ID on an address, until it is ended.
func demoServer(ctx context.Context, socket workloadapi.ClientOption, address, allowed string) error {
	id, err := spiffeid.FromString(allowed)
	if err != nil {
		return err
	}
	source, err := source(ctx, "Server", socket)
	if err != nil {
		return err
	}
	defer source.Close()
	log.Println("[Server] Configuring TLS with mTLS...")
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id))
	watched{"Server", config}.watch()
	server := &http.Server{Addr: address, TLSConfig: config, Handler: http.HandlerFunc(greet)}
	log.Printf("[Server] Starting HTTPS server on %s...", address)
	return server.ListenAndServeTLS("", "")
}

func greet(w http.ResponseWriter, r *http.Request) {
	log.Println("[Server] Received request")
	log.Printf("[Server] TLS handshake complete. Peer certificates count: %d", len(r.TLS.PeerCertificates))
	id := r.TLS.PeerCertificates[0].URIs[0]
	log.Printf("[Server] Client SPIFFE ID from cert: %s", id)
	if _, err := fmt.Fprintf(w, "Hello, client with SPIFFE ID: %s\n", id); err != nil {
		log.Printf("[Server] Failed to write response: %v", err)
		return
	}
	log.Println("[Server] Response written successfully")
}

// demoClient asks a server with the expected SPIFFE ID once.
func demoClient(ctx context.Context, socket workloadapi.ClientOption, url, expected string) error {
	id, err := spiffeid.FromString(expected)
	if err != nil {
		return err
	}
	source, err := source(ctx, "Client", socket)
	if err != nil {
		return err
	}
	defer func() {
		log.Println("[Client] Closing X509Source...")
		source.Close()
	}()
	log.Println("[Client] Configuring TLS with mTLS...")
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id))
	watched{"Client", config}.watch()
	certificate := config.GetClientCertificate
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		log.Println("[Client] GetClientCertificate called")
		own, err := certificate(info)
		log.Println("[Client] Returning client certificate")
		return own, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	log.Printf("[Client] Sending GET request to %s", url)
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	log.Println("[Client] Reading response body...")
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	log.Printf("[Client] Server response: %s", body)
	return nil
}
