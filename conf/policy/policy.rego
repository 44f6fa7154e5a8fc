# What spire-server decides without a policy of its own, as a policy to start from (docs/policy.md). The data beside it
# lists the methods.
package spire

result := {
	"allow": allow,
	"allow_if_local": allow_if_local,
	"allow_if_admin": allow_if_admin,
	"allow_if_downstream": allow_if_downstream,
	"allow_if_agent": allow_if_agent,
}

default allow := false

default allow_if_local := false

default allow_if_admin := false

default allow_if_downstream := false

default allow_if_agent := false

callers := data.callers[input.full_method]

allow if "any" in callers

allow_if_local if "local" in callers

allow_if_admin if "admin" in callers

allow_if_downstream if "downstream" in callers

allow_if_agent if "agent" in callers
