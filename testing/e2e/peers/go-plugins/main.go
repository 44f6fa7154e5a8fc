// Plugins for SPIRE servers and agents, made with SPIRE's plugin SDK: one program, whose first argument says
// which plugin it is. What a plugin sees it writes below the folder `dir` of its configuration.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl"
	"github.com/spiffe/spire-plugin-sdk/pluginmain"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	agentstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/agentstore/v1"
	identityproviderv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/identityprovider/v1"
	agentkeymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	agentnodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	svidstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/svidstore/v1"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	bundlepublisherv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	credentialcomposerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	notifierv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/notifier/v1"
	upstreamauthorityv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/upstreamauthority/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func main() {
	kind := ""
	if len(os.Args) > 1 {
		kind = os.Args[1]
	}
	switch kind {
	case "server-keymanager":
		p := new(keyManager)
		pluginmain.Serve(keymanagerv1.KeyManagerPluginServer(p), configv1.ConfigServiceServer(p))
	case "agent-keymanager":
		p := new(agentKeyManager)
		pluginmain.Serve(agentkeymanagerv1.KeyManagerPluginServer(p), configv1.ConfigServiceServer(p))
	case "server-nodeattestor":
		p := new(nodeAttestor)
		pluginmain.Serve(nodeattestorv1.NodeAttestorPluginServer(p), configv1.ConfigServiceServer(p))
	case "agent-nodeattestor":
		p := new(agentNodeAttestor)
		pluginmain.Serve(agentnodeattestorv1.NodeAttestorPluginServer(p), configv1.ConfigServiceServer(p))
	case "workloadattestor":
		p := new(workloadAttestor)
		pluginmain.Serve(workloadattestorv1.WorkloadAttestorPluginServer(p), configv1.ConfigServiceServer(p))
	case "workloadattestor-by-reference":
		// It has no configuration, either.
		pluginmain.Serve(workloadattestorv1.WorkloadAttestorPluginServer(new(referenceAttestor)))
	case "svidstore":
		p := new(svidStore)
		pluginmain.Serve(svidstorev1.SVIDStorePluginServer(p), configv1.ConfigServiceServer(p))
	case "credentialcomposer":
		p := new(credentialComposer)
		pluginmain.Serve(credentialcomposerv1.CredentialComposerPluginServer(p), configv1.ConfigServiceServer(p))
	case "notifier":
		p := new(notifier)
		pluginmain.Serve(notifierv1.NotifierPluginServer(p), configv1.ConfigServiceServer(p))
	case "bundlepublisher":
		p := new(bundlePublisher)
		pluginmain.Serve(bundlepublisherv1.BundlePublisherPluginServer(p), configv1.ConfigServiceServer(p))
	case "upstreamauthority":
		p := new(upstreamAuthority)
		pluginmain.Serve(upstreamauthorityv1.UpstreamAuthorityPluginServer(p), configv1.ConfigServiceServer(p))
	default:
		fmt.Fprintf(os.Stderr, "no plugin %q\n", kind)
		os.Exit(2)
	}
}

// settings are those of all plugins.
type settings struct {
	Dir    string `hcl:"dir"`
	Value  string `hcl:"value"`
	Refuse string `hcl:"refuse"`
}

// base is what all plugins have: configuration, log and host services.
type base struct {
	configv1.UnsafeConfigServer

	mu          sync.RWMutex
	settings    settings
	trustDomain string

	log      hclog.Logger
	agents   agentstorev1.AgentStoreServiceClient
	identity identityproviderv1.IdentityProviderServiceClient
	metrics  metricsv1.MetricsServiceClient
}

var (
	_ pluginsdk.NeedsLogger       = (*base)(nil)
	_ pluginsdk.NeedsHostServices = (*base)(nil)
)

func (b *base) SetLogger(log hclog.Logger) {
	b.log = log
}

func (b *base) BrokerHostServices(broker pluginsdk.ServiceBroker) error {
	broker.BrokerClient(&b.agents)
	broker.BrokerClient(&b.identity)
	if !broker.BrokerClient(&b.metrics) {
		return errors.New("there are no metrics")
	}
	return nil
}

func (b *base) Configure(_ context.Context, req *configv1.ConfigureRequest) (*configv1.ConfigureResponse, error) {
	var s settings
	if err := hcl.Decode(&s, req.HclConfiguration); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "unable to decode configuration: %v", err)
	}
	if s.Refuse != "" {
		return nil, status.Error(codes.InvalidArgument, s.Refuse)
	}
	b.mu.Lock()
	b.settings, b.trustDomain = s, req.CoreConfiguration.TrustDomain
	b.mu.Unlock()
	b.note("configured", req.HclConfiguration)
	b.note("pid", fmt.Sprint(os.Getpid()))
	b.log.Info("Plugin was configured", "value", s.Value, "answer", 42)
	b.log.Debug("Only for those who look closely")
	return &configv1.ConfigureResponse{}, nil
}

func (b *base) Validate(_ context.Context, req *configv1.ValidateRequest) (*configv1.ValidateResponse, error) {
	var s settings
	if err := hcl.Decode(&s, req.HclConfiguration); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "unable to decode configuration: %v", err)
	}
	if s.Refuse != "" {
		return &configv1.ValidateResponse{Notes: []string{s.Refuse, "second note"}}, nil
	}
	return &configv1.ValidateResponse{Valid: true}, nil
}

// Close is called when SPIRE unloads the plugin.
func (b *base) Close() error {
	b.note("closed", "yes")
	return nil
}

func (b *base) config() (settings, string, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.trustDomain == "" {
		return settings{}, "", status.Error(codes.FailedPrecondition, "not configured")
	}
	return b.settings, b.trustDomain, nil
}

// note writes a file for the test, whole or not at all.
func (b *base) note(name, text string) {
	b.mu.RLock()
	dir := b.settings.Dir
	b.mu.RUnlock()
	if dir == "" {
		return
	}
	path := filepath.Join(dir, name)
	_ = os.MkdirAll(filepath.Dir(path), 0o755)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err == nil {
		_ = os.Rename(path+".new", path)
	}
}

// obey does what the test asks by files: `crash` ends the plugin, `hang` makes this call never return.
func (b *base) obey() {
	b.mu.RLock()
	dir := b.settings.Dir
	b.mu.RUnlock()
	if os.Remove(filepath.Join(dir, "crash")) == nil {
		panic("crashed as asked")
	}
	if _, err := os.Stat(filepath.Join(dir, "hang")); err == nil {
		select {}
	}
}

func words(text, separator string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, separator)
}
