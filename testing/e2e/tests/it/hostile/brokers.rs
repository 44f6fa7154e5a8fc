//! The agent's TCP port for brokers, which anybody may reach.

use std::io::Write as _;

use spire_testkit::Run;
use spire_wire::broker;
use tonic::Code;

use super::{HALF_HELLO, SILENT, attacker};
use crate::delegate::{OBJECT, Secured, Setup, block_on, reference, secure, told};
use crate::harness::Outcome;

pub(super) fn silent() -> Outcome {
    let mut setup = Setup::start_with(None, |_| Ok(()))?;
    let tls = setup.broker_tls()?;
    let mut held = Vec::new();
    for n in 0..SILENT {
        // More than one address may have are refused, which is as good.
        let Ok(mut connection) = attacker(setup.port) else { continue };
        let junk = [&[][..], HALF_HELLO, b"GET / HTTP/1.1\r\n\r\n"][n % 3];
        let _ = connection.write_all(junk);
        held.push(connection);
    }
    // Who shows no certificate, or one of nobody, is not let in.
    let connect = format!("127.0.0.1:{}", setup.port);
    let openssl =
        |args: &[&str]| Run::new("openssl").args(args).within(setup.site.folder()).input("").output();
    let made = openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=x",
        "-addext",
        "subjectAltName=URI:spiffe://example.org/delegate",
        "-keyout",
        "forged.key",
        "-out",
        "forged.pem",
    ])?;
    assert_eq!(made.code, 0, "{made}");
    let client = ["s_client", "-tls1_2", "-connect", &connect, "-alpn", "h2"];
    for more in [&[][..], &["-cert", "forged.pem", "-key", "forged.key"]] {
        let output = openssl(&[&client[..], more].concat())?;
        assert!(output.code != 0 && output.to_string().contains("SSL alert number"), "{more:?}: {output}");
    }
    // The broker is served all the same, as far as its rights go.
    let status = block_on(async {
        let channel = spire_net::grpc::tcp_channel("127.0.0.1", setup.port, tls)?;
        let mut client: broker::api_client::ApiClient<Secured> =
            broker::api_client::ApiClient::with_interceptor(channel, secure as fn(_) -> _);
        let kind = broker::KubernetesObjectType { plural: "pods".to_owned(), group: "core".to_owned() };
        let object = broker::KubernetesObjectReference { r#type: Some(kind), key: None, uid: "x".to_owned() };
        let request = broker::SubscribeToX509svidRequest { reference: reference(OBJECT, &object) };
        Ok::<_, libtest_mimic::Failed>(client.subscribe_to_x509svid(request).await.err())
    })??;
    let status = status.ok_or("it was answered")?;
    assert_eq!(told(&status), (Code::Unimplemented, "no workload attestor handled reference"));
    drop(held);
    assert!(setup.agent.is_running());
    Ok(())
}
