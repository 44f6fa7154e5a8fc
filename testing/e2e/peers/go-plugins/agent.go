package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	agentnodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	svidstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/svidstore/v1"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// agentNodeAttestor gives its value as the agent's name.
type agentNodeAttestor struct {
	agentnodeattestorv1.UnsafeNodeAttestorServer
	base
}

func (p *agentNodeAttestor) AidAttestation(stream agentnodeattestorv1.NodeAttestor_AidAttestationServer) error {
	s, _, err := p.config()
	if err != nil {
		return err
	}
	err = stream.Send(&agentnodeattestorv1.PayloadOrChallengeResponse{
		Data: &agentnodeattestorv1.PayloadOrChallengeResponse_Payload{Payload: []byte("hello " + s.Value)},
	})
	if err != nil {
		return err
	}
	challenge, err := stream.Recv()
	if err != nil {
		return err
	}
	return stream.Send(&agentnodeattestorv1.PayloadOrChallengeResponse{
		Data: &agentnodeattestorv1.PayloadOrChallengeResponse_ChallengeResponse{
			ChallengeResponse: append(challenge.Challenge, []byte(" "+s.Value)...),
		},
	})
}

// workloadAttestor says of each process its command and the configured value.
type workloadAttestor struct {
	workloadattestorv1.UnimplementedWorkloadAttestorServer
	base
}

func (p *workloadAttestor) Attest(_ context.Context, req *workloadattestorv1.AttestRequest) (*workloadattestorv1.AttestResponse, error) {
	s, _, err := p.config()
	if err != nil {
		return nil, err
	}
	p.obey()
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", req.Pid))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "no such process: %v", err)
	}
	values := []string{"exe:" + filepath.Base(path)}
	for _, value := range words(s.Value, ",") {
		values = append(values, "value:"+value)
	}
	return &workloadattestorv1.AttestResponse{SelectorValues: values}, nil
}

// referenceAttestor has the newer method only.
type referenceAttestor struct {
	workloadattestorv1.UnimplementedWorkloadAttestorServer
}

func (p *referenceAttestor) AttestReference(_ context.Context, req *workloadattestorv1.AttestReferenceRequest) (*workloadattestorv1.AttestReferenceResponse, error) {
	return &workloadattestorv1.AttestReferenceResponse{SelectorValues: []string{"type:" + req.Reference.TypeUrl}}, nil
}

// svidStore writes each SVID as JSON, in a file that the first selector names.
type svidStore struct {
	svidstorev1.UnsafeSVIDStoreServer
	base
}

type stored struct {
	ID        string
	Metadata  []string
	Chain     [][]byte
	Key       []byte
	Bundle    [][]byte
	Federated map[string][]byte
	ExpiresAt int64
}

func (p *svidStore) PutX509SVID(_ context.Context, req *svidstorev1.PutX509SVIDRequest) (*svidstorev1.PutX509SVIDResponse, error) {
	s, _, err := p.config()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "full")); err == nil {
		return nil, status.Error(codes.ResourceExhausted, "the store is full")
	}
	text, err := json.Marshal(stored{
		ID: req.Svid.SpiffeID, Metadata: req.Metadata, Chain: req.Svid.CertChain, Key: req.Svid.PrivateKey,
		Bundle: req.Svid.Bundle, Federated: req.FederatedBundles, ExpiresAt: req.Svid.ExpiresAt,
	})
	if err != nil {
		return nil, err
	}
	p.note("svid-"+req.Metadata[0], string(text))
	return &svidstorev1.PutX509SVIDResponse{}, nil
}

func (p *svidStore) DeleteX509SVID(_ context.Context, req *svidstorev1.DeleteX509SVIDRequest) (*svidstorev1.DeleteX509SVIDResponse, error) {
	s, _, err := p.config()
	if err != nil {
		return nil, err
	}
	err = os.Remove(filepath.Join(s.Dir, "svid-"+req.Metadata[0]))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return &svidstorev1.DeleteX509SVIDResponse{}, nil
}
