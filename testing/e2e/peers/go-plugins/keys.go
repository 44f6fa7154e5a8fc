package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"os"
	"path/filepath"
	"sort"
	"strings"

	agentkeymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// keys are files `key-<id>` of the folder.
type keys struct {
	base
}

type key struct {
	id          string
	signer      crypto.Signer
	pkix        []byte
	fingerprint string
}

func (k *keys) generate(id string, keyType int32) (*key, error) {
	s, _, err := k.config()
	if err != nil {
		return nil, err
	}
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "key id is required")
	}
	var signer crypto.Signer
	switch keyType {
	case 1:
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case 2:
		signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case 3:
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case 4:
		signer, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		return nil, status.Error(codes.InvalidArgument, "key type is required")
	}
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, err
	}
	if s.Dir == "" {
		return nil, status.Error(codes.FailedPrecondition, "no folder")
	}
	k.note("key-"+id, string(der))
	return load(id, der)
}

func load(id string, der []byte) (*key, error) {
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	signer := private.(crypto.Signer)
	pkix, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(pkix)
	return &key{id: id, signer: signer, pkix: pkix, fingerprint: hex.EncodeToString(sum[:])}, nil
}

func (k *keys) find(id string) (*key, error) {
	s, _, err := k.config()
	if err != nil {
		return nil, err
	}
	der, err := os.ReadFile(filepath.Join(s.Dir, "key-"+id))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return load(id, der)
}

func (k *keys) all() ([]*key, error) {
	s, _, err := k.config()
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(s.Dir, "key-*"))
	if err != nil {
		return nil, err
	}
	sort.Strings(paths)
	var found []*key
	for _, path := range paths {
		if strings.HasSuffix(path, ".new") {
			continue
		}
		one, err := k.find(strings.TrimPrefix(filepath.Base(path), "key-"))
		if err != nil {
			return nil, err
		}
		found = append(found, one)
	}
	return found, nil
}

func (k *keys) sign(id string, digest []byte, opts crypto.SignerOpts) ([]byte, string, error) {
	k.obey()
	one, err := k.find(id)
	if err != nil {
		return nil, "", err
	}
	if one == nil {
		return nil, "", status.Errorf(codes.NotFound, "no such key %q", id)
	}
	signature, err := one.signer.Sign(rand.Reader, digest, opts)
	return signature, one.fingerprint, err
}

// keyManager is a server's.
type keyManager struct {
	keymanagerv1.UnsafeKeyManagerServer
	keys
}

func serverKey(k *key) *keymanagerv1.PublicKey {
	if k == nil {
		return nil
	}
	return &keymanagerv1.PublicKey{Id: k.id, PkixData: k.pkix, Fingerprint: k.fingerprint}
}

func (p *keyManager) GenerateKey(_ context.Context, req *keymanagerv1.GenerateKeyRequest) (*keymanagerv1.GenerateKeyResponse, error) {
	made, err := p.generate(req.KeyId, int32(req.KeyType))
	if err != nil {
		return nil, err
	}
	return &keymanagerv1.GenerateKeyResponse{PublicKey: serverKey(made)}, nil
}

func (p *keyManager) GetPublicKey(_ context.Context, req *keymanagerv1.GetPublicKeyRequest) (*keymanagerv1.GetPublicKeyResponse, error) {
	found, err := p.find(req.KeyId)
	if err != nil {
		return nil, err
	}
	return &keymanagerv1.GetPublicKeyResponse{PublicKey: serverKey(found)}, nil
}

func (p *keyManager) GetPublicKeys(context.Context, *keymanagerv1.GetPublicKeysRequest) (*keymanagerv1.GetPublicKeysResponse, error) {
	found, err := p.all()
	if err != nil {
		return nil, err
	}
	resp := new(keymanagerv1.GetPublicKeysResponse)
	for _, one := range found {
		resp.PublicKeys = append(resp.PublicKeys, serverKey(one))
	}
	return resp, nil
}

func (p *keyManager) SignData(_ context.Context, req *keymanagerv1.SignDataRequest) (*keymanagerv1.SignDataResponse, error) {
	var opts crypto.SignerOpts
	switch o := req.SignerOpts.(type) {
	case *keymanagerv1.SignDataRequest_HashAlgorithm:
		opts = crypto.Hash(o.HashAlgorithm)
	case *keymanagerv1.SignDataRequest_PssOptions:
		opts = &rsa.PSSOptions{SaltLength: int(o.PssOptions.SaltLength), Hash: crypto.Hash(o.PssOptions.HashAlgorithm)}
	default:
		return nil, status.Error(codes.InvalidArgument, "signer opts is required")
	}
	signature, fingerprint, err := p.sign(req.KeyId, req.Data, opts)
	if err != nil {
		return nil, err
	}
	return &keymanagerv1.SignDataResponse{Signature: signature, KeyFingerprint: fingerprint}, nil
}

// agentKeyManager is an agent's.
type agentKeyManager struct {
	agentkeymanagerv1.UnsafeKeyManagerServer
	keys
}

func agentKey(k *key) *agentkeymanagerv1.PublicKey {
	if k == nil {
		return nil
	}
	return &agentkeymanagerv1.PublicKey{Id: k.id, PkixData: k.pkix, Fingerprint: k.fingerprint}
}

func (p *agentKeyManager) GenerateKey(_ context.Context, req *agentkeymanagerv1.GenerateKeyRequest) (*agentkeymanagerv1.GenerateKeyResponse, error) {
	made, err := p.generate(req.KeyId, int32(req.KeyType))
	if err != nil {
		return nil, err
	}
	return &agentkeymanagerv1.GenerateKeyResponse{PublicKey: agentKey(made)}, nil
}

func (p *agentKeyManager) GetPublicKey(_ context.Context, req *agentkeymanagerv1.GetPublicKeyRequest) (*agentkeymanagerv1.GetPublicKeyResponse, error) {
	found, err := p.find(req.KeyId)
	if err != nil {
		return nil, err
	}
	return &agentkeymanagerv1.GetPublicKeyResponse{PublicKey: agentKey(found)}, nil
}

func (p *agentKeyManager) GetPublicKeys(context.Context, *agentkeymanagerv1.GetPublicKeysRequest) (*agentkeymanagerv1.GetPublicKeysResponse, error) {
	found, err := p.all()
	if err != nil {
		return nil, err
	}
	resp := new(agentkeymanagerv1.GetPublicKeysResponse)
	for _, one := range found {
		resp.PublicKeys = append(resp.PublicKeys, agentKey(one))
	}
	return resp, nil
}

func (p *agentKeyManager) SignData(_ context.Context, req *agentkeymanagerv1.SignDataRequest) (*agentkeymanagerv1.SignDataResponse, error) {
	var opts crypto.SignerOpts
	switch o := req.SignerOpts.(type) {
	case *agentkeymanagerv1.SignDataRequest_HashAlgorithm:
		opts = crypto.Hash(o.HashAlgorithm)
	case *agentkeymanagerv1.SignDataRequest_PssOptions:
		opts = &rsa.PSSOptions{SaltLength: int(o.PssOptions.SaltLength), Hash: crypto.Hash(o.PssOptions.HashAlgorithm)}
	default:
		return nil, status.Error(codes.InvalidArgument, "signer opts is required")
	}
	signature, fingerprint, err := p.sign(req.KeyId, req.Data, opts)
	if err != nil {
		return nil, err
	}
	return &agentkeymanagerv1.SignDataResponse{Signature: signature, KeyFingerprint: fingerprint}, nil
}
