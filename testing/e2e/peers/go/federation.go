// What go-spiffe makes of a trust domain that federates: its bundle endpoint, its tokens abroad, its administrators.
package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"

	"crypto/tls"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// bundle URL DOMAIN ROOTS.pem, or bundle URL DOMAIN BUNDLE.json ENDPOINT-ID: the endpoint's bundle, once.
func bundle(ctx context.Context, args []string) error {
	domain, err := spiffeid.TrustDomainFromString(args[1])
	if err != nil {
		return err
	}
	var option federation.FetchOption
	if len(args) == 3 {
		roots, err := pool(args[2])
		if err != nil {
			return err
		}
		option = federation.WithWebPKIRoots(roots)
	} else {
		id, err := spiffeid.FromString(args[3])
		if err != nil {
			return err
		}
		known, err := spiffebundle.Load(id.TrustDomain(), args[2])
		if err != nil {
			return err
		}
		option = federation.WithSPIFFEAuth(known, id)
	}
	found, err := federation.FetchBundle(ctx, domain, args[0], option)
	if err != nil {
		return err
	}
	hint, _ := found.RefreshHint()
	_, sequenced := found.SequenceNumber()
	fmt.Println("bundle", found.TrustDomain(), "x509", len(found.X509Authorities()), "jwt", len(found.JWTAuthorities()),
		"hint", hint, "sequenced", sequenced)
	return nil
}

// get URL ROOTS.pem: a document of the web.
func get(ctx context.Context, args []string) error {
	roots, err := pool(args[1])
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func pool(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificates", path)
	}
	return roots, nil
}

// validate judges a token of any trust domain twice: here, with the bundles of the Workload API, and by the agent.
func validate(ctx context.Context, socket workloadapi.ClientOption, audience, token string) error {
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(socket))
	if err != nil {
		return err
	}
	defer source.Close()
	here, err := jwtsvid.ParseAndValidate(token, source, []string{audience})
	if err != nil {
		return err
	}
	fmt.Println("validated here", here.ID)
	there, err := workloadapi.ValidateJWTSVID(ctx, token, audience, socket)
	if err != nil {
		return err
	}
	fmt.Println("validated there", there.ID)
	return nil
}

// plain passes messages through as they are on the wire.
type plain struct{}

func (plain) Marshal(message any) ([]byte, error)       { return *message.(*[]byte), nil }
func (plain) Unmarshal(bytes []byte, message any) error { *message.(*[]byte) = bytes; return nil }
func (plain) Name() string                              { return "proto" }

// admin calls a method of a server of SPIRE's APIs with an empty message, as the workload that it is.
func admin(ctx context.Context, socket workloadapi.ClientOption, address, server, method string) error {
	id, err := spiffeid.FromString(server)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(socket))
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id))
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return err
	}
	defer connection.Close()
	var request, response []byte
	err = connection.Invoke(ctx, method, &request, &response, grpc.ForceCodec(plain{}))
	fmt.Println("answered", status.Code(err), status.Convert(err).Message())
	return nil
}
