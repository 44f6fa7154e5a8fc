package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	agentstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/agentstore/v1"
	identityproviderv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/identityprovider/v1"
	bundlepublisherv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	credentialcomposerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	notifierv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/notifier/v1"
	upstreamauthorityv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/upstreamauthority/v1"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// nodeAttestor takes the name that an agent gives, if the agent answers its challenge.
type nodeAttestor struct {
	nodeattestorv1.UnsafeNodeAttestorServer
	base
}

func (p *nodeAttestor) Attest(stream nodeattestorv1.NodeAttestor_AttestServer) error {
	_, trustDomain, err := p.config()
	if err != nil {
		return err
	}
	p.obey()
	told, _ := metadata.FromIncomingContext(stream.Context())
	p.note("from", strings.Join(told.Get("X-Forwarded-Client-IP"), ","))
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	name, ok := strings.CutPrefix(string(req.GetPayload()), "hello ")
	if !ok {
		return status.Error(codes.InvalidArgument, "no greeting")
	}
	err = stream.Send(&nodeattestorv1.AttestResponse{
		Response: &nodeattestorv1.AttestResponse_Challenge{Challenge: []byte("nonce")},
	})
	if err != nil {
		return err
	}
	if req, err = stream.Recv(); err != nil {
		return err
	}
	if got := string(req.GetChallengeResponse()); got != "nonce "+name {
		return status.Errorf(codes.PermissionDenied, "wrong answer %q", got)
	}
	id := "spiffe://" + trustDomain + "/spire/agent/echo/" + name
	known := "known"
	_, err = p.agents.GetAgentInfo(stream.Context(), &agentstorev1.GetAgentInfoRequest{AgentId: id})
	switch status.Code(err) {
	case codes.OK:
	case codes.NotFound:
		known = "new"
	default:
		return err
	}
	p.note("agent-"+name, known)
	_, err = p.metrics.IncrCounter(stream.Context(), &metricsv1.IncrCounterRequest{
		Key: []string{"echo", "attested"}, Val: 1, Labels: []*metricsv1.Label{{Name: "name", Value: name}},
	})
	if err != nil {
		return err
	}
	return stream.Send(&nodeattestorv1.AttestResponse{
		Response: &nodeattestorv1.AttestResponse_AgentAttributes{
			AgentAttributes: &nodeattestorv1.AgentAttributes{
				SpiffeId: id, SelectorValues: []string{"name:" + name}, CanReattest: true,
			},
		},
	})
}

// credentialComposer adds its value to what is signed for workloads, and says what it saw of the others.
type credentialComposer struct {
	credentialcomposerv1.UnimplementedCredentialComposerServer
	base
}

func (p *credentialComposer) ComposeServerX509CA(_ context.Context, req *credentialcomposerv1.ComposeServerX509CARequest) (*credentialcomposerv1.ComposeServerX509CAResponse, error) {
	p.note("ca", strings.Join(req.Attributes.Subject.Organization, ","))
	return &credentialcomposerv1.ComposeServerX509CAResponse{}, nil
}

func (p *credentialComposer) ComposeWorkloadX509SVID(_ context.Context, req *credentialcomposerv1.ComposeWorkloadX509SVIDRequest) (*credentialcomposerv1.ComposeWorkloadX509SVIDResponse, error) {
	s, _, err := p.config()
	if err != nil {
		return nil, err
	}
	if s.Value == "fail" {
		return nil, status.Error(codes.ResourceExhausted, "no more of these")
	}
	attributes := req.Attributes
	attributes.Subject.OrganizationalUnit = append(attributes.Subject.OrganizationalUnit, s.Value)
	attributes.DnsSans = append(attributes.DnsSans, "composed.test")
	return &credentialcomposerv1.ComposeWorkloadX509SVIDResponse{Attributes: attributes}, nil
}

func (p *credentialComposer) ComposeWorkloadJWTSVID(_ context.Context, req *credentialcomposerv1.ComposeWorkloadJWTSVIDRequest) (*credentialcomposerv1.ComposeWorkloadJWTSVIDResponse, error) {
	s, _, err := p.config()
	if err != nil {
		return nil, err
	}
	claims := req.Attributes.Claims
	claims.Fields["composed"] = structpb.NewStringValue(s.Value)
	return &credentialcomposerv1.ComposeWorkloadJWTSVIDResponse{Attributes: req.Attributes}, nil
}

// notifier writes down each bundle, with the identity that its server had then.
type notifier struct {
	notifierv1.UnsafeNotifierServer
	base
}

func (p *notifier) Notify(ctx context.Context, req *notifierv1.NotifyRequest) (*notifierv1.NotifyResponse, error) {
	return &notifierv1.NotifyResponse{}, p.write(ctx, "updated", req.GetBundleUpdated().GetBundle())
}

func (p *notifier) NotifyAndAdvise(ctx context.Context, req *notifierv1.NotifyAndAdviseRequest) (*notifierv1.NotifyAndAdviseResponse, error) {
	return &notifierv1.NotifyAndAdviseResponse{}, p.write(ctx, "loaded", req.GetBundleLoaded().GetBundle())
}

func (p *notifier) write(ctx context.Context, name string, bundle *types.Bundle) error {
	own, err := p.identity.FetchX509Identity(ctx, &identityproviderv1.FetchX509IdentityRequest{})
	if err != nil {
		return err
	}
	certificate, err := x509.ParseCertificate(own.Identity.CertChain[0])
	if err != nil {
		return err
	}
	if _, err := x509.ParsePKCS8PrivateKey(own.Identity.PrivateKey); err != nil {
		return err
	}
	p.note(name, fmt.Sprintf("%s %d %d as %s of %s", bundle.TrustDomain, len(bundle.X509Authorities),
		len(bundle.JwtAuthorities), certificate.URIs[0], own.Bundle.TrustDomain))
	return nil
}

// bundlePublisher writes the bundle.
type bundlePublisher struct {
	bundlepublisherv1.UnsafeBundlePublisherServer
	base
}

func (p *bundlePublisher) PublishBundle(_ context.Context, req *bundlepublisherv1.PublishBundleRequest) (*bundlepublisherv1.PublishBundleResponse, error) {
	p.note("published", fmt.Sprintf("%s %d", req.Bundle.TrustDomain, len(req.Bundle.X509Authorities)))
	return &bundlepublisherv1.PublishBundleResponse{}, nil
}

// upstreamAuthority signs with `ca.der` and `ca.key` (PKCS#8) of its folder; its keys and bundle change as files appear there.
type upstreamAuthority struct {
	upstreamauthorityv1.UnimplementedUpstreamAuthorityServer
	base
}

func (p *upstreamAuthority) MintX509CAAndSubscribe(req *upstreamauthorityv1.MintX509CARequest, stream upstreamauthorityv1.UpstreamAuthority_MintX509CAAndSubscribeServer) error {
	s, trustDomain, err := p.config()
	if err != nil {
		return err
	}
	rootDER, err := os.ReadFile(filepath.Join(s.Dir, "ca.der"))
	if err != nil {
		return err
	}
	keyDER, err := os.ReadFile(filepath.Join(s.Dir, "ca.key"))
	if err != nil {
		return err
	}
	root, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return err
	}
	key, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return err
	}
	csr, err := x509.ParseCertificateRequest(req.Csr)
	if err != nil {
		return err
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != "spiffe://"+trustDomain {
		return status.Errorf(codes.InvalidArgument, "a request for %v", csr.URIs)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               csr.Subject,
		URIs:                  csr.URIs,
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(time.Duration(req.PreferredTtl) * time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	signed, err := x509.CreateCertificate(nil, template, root, csr.PublicKey, key)
	if err != nil {
		return err
	}
	return stream.Send(&upstreamauthorityv1.MintX509CAResponse{
		X509CaChain:       []*types.X509Certificate{{Asn1: signed}},
		UpstreamX509Roots: []*types.X509Certificate{{Asn1: rootDER}},
	})
}

// PublishJWTKeyAndSubscribe takes a key beside the upstream's own, `key.spki`, of which there is another once the test
// makes `publish-later`.
func (p *upstreamAuthority) PublishJWTKeyAndSubscribe(req *upstreamauthorityv1.PublishJWTKeyRequest, stream upstreamauthorityv1.UpstreamAuthority_PublishJWTKeyAndSubscribeServer) error {
	s, _, err := p.config()
	if err != nil {
		return err
	}
	key, err := os.ReadFile(filepath.Join(s.Dir, "key.spki"))
	if err != nil {
		return err
	}
	keys := []*types.JWTKey{req.JwtKey, {KeyId: "upstream", PublicKey: key}}
	if err := stream.Send(&upstreamauthorityv1.PublishJWTKeyResponse{UpstreamJwtKeys: keys}); err != nil {
		return err
	}
	p.note("published", req.JwtKey.KeyId)
	if err := appears(stream.Context(), filepath.Join(s.Dir, "publish-later")); err != nil {
		return err
	}
	keys = append(keys, &types.JWTKey{KeyId: "published-later", PublicKey: key})
	if err := stream.Send(&upstreamauthorityv1.PublishJWTKeyResponse{UpstreamJwtKeys: keys}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// SubscribeToLocalBundle has the root, and another one (`other.der`) with a key once the test makes `bundle-later`.
func (p *upstreamAuthority) SubscribeToLocalBundle(_ *upstreamauthorityv1.SubscribeToLocalBundleRequest, stream upstreamauthorityv1.UpstreamAuthority_SubscribeToLocalBundleServer) error {
	s, _, err := p.config()
	if err != nil {
		return err
	}
	root, err := os.ReadFile(filepath.Join(s.Dir, "ca.der"))
	if err != nil {
		return err
	}
	roots := []*types.X509Certificate{{Asn1: root}}
	err = stream.Send(&upstreamauthorityv1.SubscribeToLocalBundleResponse{UpstreamX509Roots: roots})
	if err != nil {
		return err
	}
	p.note("subscribed", "yes")
	if err := appears(stream.Context(), filepath.Join(s.Dir, "bundle-later")); err != nil {
		return err
	}
	other, err := os.ReadFile(filepath.Join(s.Dir, "other.der"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(filepath.Join(s.Dir, "key.spki"))
	if err != nil {
		return err
	}
	err = stream.Send(&upstreamauthorityv1.SubscribeToLocalBundleResponse{
		UpstreamX509Roots: append(roots, &types.X509Certificate{Asn1: other}),
		UpstreamJwtKeys:   []*types.JWTKey{{KeyId: "bundle-later", PublicKey: key}},
	})
	if err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// appears waits for a file.
func appears(ctx context.Context, path string) error {
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
