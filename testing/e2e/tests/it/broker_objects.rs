//! A broker gets the identities of objects of Kubernetes, as far as the agent's settings and the cluster let it. The API
//! server is a stand-in that speaks the real one's HTTP and TLS; SPIRE's agent is asked the same, where it is there.

use serde_json::json;
use spire_testkit::kubernetes::{ApiServer, Cluster, pod};
use spire_wire::broker;
use tonic::{Code, Status};

use crate::delegate::{DELEGATE, NODE, OBJECT, PID, Secured, Setup, block_on, reference, secure, told};
use crate::harness::programs::{self, Programs};
use crate::harness::site::text;
use crate::harness::{Case, Need, Outcome, SOON};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "broker_objects::permissive_and_enforced", needs: &[], run: || objects(None) },
        Case {
            name: "broker_objects::permissive_and_enforced_of_spire",
            needs: &[Need::Reference],
            run: || objects(programs::reference()),
        },
    ]
}

type Client = broker::api_client::ApiClient<Secured>;

fn object(kind: (&str, &str), key: Option<(&str, &str)>, uid: &str) -> Option<broker::WorkloadReference> {
    let kind = broker::KubernetesObjectType { plural: kind.0.to_owned(), group: kind.1.to_owned() };
    let key = key.map(|(namespace, name)| broker::KubernetesObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    });
    let uid = uid.to_owned();
    reference(OBJECT, &broker::KubernetesObjectReference { r#type: Some(kind), key, uid })
}

/// The identities of what is referred to.
async fn identities(
    client: &mut Client,
    reference: Option<broker::WorkloadReference>,
) -> Result<Vec<String>, Status> {
    let request = broker::SubscribeToX509svidRequest { reference };
    let first = client.subscribe_to_x509svid(request).await?.into_inner().message().await?;
    let svids = first.ok_or_else(|| Status::unknown("the stream ended"))?.svids;
    Ok(svids.into_iter().map(|svid| svid.spiffe_id).collect())
}

const PODS: (&str, &str) = ("pods", "core");
const DEPLOYMENTS: (&str, &str) = ("deployments", "apps");
const POD_ID: &str = "spiffe://example.org/pod";
const DEPLOYMENT_ID: &str = "spiffe://example.org/deployment";

fn objects(programs: Option<&'static Programs>) -> Outcome {
    let mut cluster = Cluster::with_agent("projected");
    cluster.pods.push(pod("shop", "web-1", "web-1-uid", &json!({"app": "web"})));
    let metadata = json!({"namespace": "shop", "name": "web", "uid": "web-uid", "labels": {"app": "web"}});
    cluster.deployments.push(json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": metadata}));
    let api = ApiServer::start(cluster)?;
    let mut setup = Setup::start_with(programs, |site| {
        let kubeconfig = site.path("kubeconfig");
        api.write_kubeconfig(&kubeconfig)?;
        site.agent_variables.push(("KUBECONFIG", text(&kubeconfig).to_owned()));
        site.agent.plugins = format!(
            "    WorkloadAttestor \"k8s\" {{\n        plugin_data {{\n            disable_kubelet_client = true\n            \
             experimental {{ broker {{\n                access_policy = \"permissive\"\n                brokers = [{{ id = \
             \"{DELEGATE}\", pod_reference_scope = \"cluster\" }}]\n            }} }}\n        }}\n    }}\n"
        );
        Ok(())
    })?;
    for (id, selector) in
        [(POD_ID, "k8s:pod-label:app:web"), (DEPLOYMENT_ID, "k8s:resource:deployments.apps")]
    {
        setup.site.entry(NODE, id, selector, &[])?;
        setup.agent.wait_for(&[id], SOON)?;
    }
    block_on(ask(&setup, programs.is_some()))??;

    // The same where Kubernetes decides, which lets the broker speak for pods only.
    let plugins = &mut setup.site.agent.plugins;
    *plugins = plugins.replace("\"permissive\"", "\"enforced\"");
    setup.restart()?;
    setup.site.wait_identities(&[DELEGATE])?;
    block_on(ask_enforced(&setup, &api))?
}

fn client(setup: &Setup) -> Result<Client, libtest_mimic::Failed> {
    let channel = setup.broker_channel(setup.broker_tls()?);
    Ok(broker::api_client::ApiClient::with_interceptor(channel, secure as fn(_) -> _))
}

async fn ask(setup: &Setup, of_spire: bool) -> Outcome {
    let mut client = client(setup)?;
    let web_1 = Some(("shop", "web-1"));
    for found in [object(PODS, web_1, ""), object(PODS, None, "web-1-uid"), object(PODS, web_1, "web-1-uid")]
    {
        assert_eq!(identities(&mut client, found).await?, [POD_ID]);
    }
    let web = Some(("shop", "web"));
    for found in [object(DEPLOYMENTS, web, ""), object(DEPLOYMENTS, None, "web-uid")] {
        assert_eq!(identities(&mut client, found).await?, [DEPLOYMENT_ID]);
    }
    let prefix = |code: &str| {
        format!("workload attestor \"k8s\" failed: rpc error: code = {code} desc = workloadattestor(k8s): ")
    };
    let refused = [
        (
            object(PODS, web_1, "another"),
            "NotFound",
            "pod shop/web-1 has UID web-1-uid, expected another".to_owned(),
        ),
        (object(PODS, Some(("shop", "none")), ""), "NotFound", "pod shop/none not found".to_owned()),
        (object(DEPLOYMENTS, None, "none"), "NotFound", "Deployment with UID none not found".to_owned()),
        (object(PODS, None, ""), "InvalidArgument", "object reference is missing key and UID".to_owned()),
        (
            object(("nodes", "core"), Some(("shop", "node-1")), ""),
            "InvalidArgument",
            "namespace must be empty for cluster-scoped resource".to_owned(),
        ),
    ];
    for (found, code, text) in refused {
        let status = identities(&mut client, found).await.err().ok_or(text.clone())?;
        assert_eq!(status.message(), prefix(code) + &text);
    }
    let status = identities(&mut client, object(("jobs", "batch"), web, "")).await.err().ok_or("jobs")?;
    let text = prefix("InvalidArgument") + "unknown Kubernetes resource jobs.batch: ";
    assert!(status.message().starts_with(&text), "{status}");
    if !of_spire {
        // What the kubelet has to say nobody can without it; the process has other attestors.
        let process =
            reference(PID, &broker::WorkloadPidReference { pid: i32::try_from(std::process::id())? });
        assert_eq!(identities(&mut client, process).await?, [DELEGATE]);
    }
    Ok(())
}

async fn ask_enforced(setup: &Setup, api: &ApiServer) -> Outcome {
    let mut client = client(setup)?;
    let pod = || object(PODS, Some(("shop", "web-1")), "");
    let denied = "workload attestor \"k8s\" failed: rpc error: code = PermissionDenied desc = workloadattestor(k8s): \
                  Kubernetes authorizer does not allow the broker to use impersonate-via-spire for the referenced object";
    let status = identities(&mut client, pod()).await.err().ok_or("it was answered")?;
    assert_eq!(told(&status), (Code::PermissionDenied, denied));
    api.change(|cluster| cluster.impersonators.push((DELEGATE.to_owned(), "pods".to_owned())));
    assert_eq!(identities(&mut client, pod()).await?, [POD_ID]);
    let status = identities(&mut client, object(DEPLOYMENTS, None, "web-uid")).await;
    assert_eq!(told(&status.err().ok_or("it was answered")?), (Code::PermissionDenied, denied));
    // A right that was taken back ends with the next question.
    api.change(|cluster| cluster.impersonators.clear());
    let status = identities(&mut client, pod()).await.err().ok_or("it was answered")?;
    assert_eq!(told(&status), (Code::PermissionDenied, denied));
    Ok(())
}
