//! WorkloadAttestor. A plugin may have one of two methods: by process ID, or by a reference of the SPIFFE broker API.
//! What is asked by the one is asked by the other where the first is not there.

use std::sync::Arc;

use async_trait::async_trait;
use prost_types::Any;
use spire_core::spiffe::{Selector, SpiffeId};
use spire_ports::plugins::{ErrorKind, Result, WorkloadAttestor, WorkloadReference};
use spire_wire::plugin::agent::workloadattestor::v1::workload_attestor_client::WorkloadAttestorClient;
use spire_wire::plugin::agent::workloadattestor::v1::{AttestReferenceRequest, AttestRequest};
use tonic::Request;

use crate::connection::client;
use crate::supervise::Supervised;

/// `spiffe.broker.WorkloadPIDReference`, whose field 1 is the process ID.
const PID_REFERENCE: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";

/// Tells a plugin which broker asks (pkg/agent/broker/brokercontext).
const BROKER_METADATA: &str = "spire-agent-broker-caller-id";

pub(super) struct External(pub(super) Arc<Supervised>);

impl External {
    async fn by_pid(&self, pid: i32) -> Result<Vec<String>> {
        let mut client = client!(WorkloadAttestorClient, self.0.channel()?);
        let answer = self.0.call(self.0.limits.call, client.attest(AttestRequest { pid })).await?;
        Ok(answer.selector_values)
    }

    async fn by_reference(&self, reference: Any, broker: Option<&SpiffeId>) -> Result<Vec<String>> {
        let mut client = client!(WorkloadAttestorClient, self.0.channel()?);
        let mut request = Request::new(AttestReferenceRequest { reference: Some(reference) });
        // A SPIFFE ID has no character that metadata cannot carry.
        if let Some(value) = broker.and_then(|id| id.as_str().parse().ok()) {
            request.metadata_mut().insert(BROKER_METADATA, value);
        }
        let answer = self.0.call(self.0.limits.call, client.attest_reference(request)).await?;
        Ok(answer.selector_values)
    }

    fn selectors(&self, values: Vec<String>) -> Result<Vec<Selector>> {
        let invalid = |error| {
            let text = format!("plugin response has an invalid selector: {error}");
            self.0.error(ErrorKind::Internal, text)
        };
        let name = self.0.plugin().1;
        values.into_iter().map(|value| Selector::new(name, value).map_err(invalid)).collect()
    }
}

#[async_trait]
impl WorkloadAttestor for External {
    fn name(&self) -> &str {
        self.0.plugin().1
    }

    async fn attest(&self, pid: i32) -> Result<Vec<Selector>> {
        let values = match self.by_pid(pid).await {
            Err(error) if error.kind == ErrorKind::Unimplemented => {
                let mut value = Vec::new();
                prost::encoding::int32::encode(1, &pid, &mut value);
                self.by_reference(Any { type_url: PID_REFERENCE.to_owned(), value }, None).await?
            }
            other => other?,
        };
        self.selectors(values)
    }

    async fn attest_reference(&self, reference: &WorkloadReference) -> Result<Vec<Selector>> {
        let message = Any { type_url: reference.type_url.clone(), value: reference.value.to_vec() };
        let values = match (self.by_reference(message, reference.broker.as_ref()).await, reference.pid) {
            (Err(error), Some(pid)) if error.kind == ErrorKind::Unimplemented => self.by_pid(pid).await?,
            (answer, _) => answer?,
        };
        self.selectors(values)
    }
}
