//! Certificates that cost more than they may: keys of 10,240 bits, chains of a hundred. All are of an authority that the server
//! trusts, so that nothing else is wrong with them.

use spire_testkit::{Error, Result, Run, place};

use crate::harness::site::text;
use crate::harness::{Outcome, Site};

/// Files of a folder, by openssl.
struct Folder<'a>(&'a Site);

impl Folder<'_> {
    fn path(&self, name: &str) -> String {
        self.0.path(name).display().to_string()
    }

    fn openssl(&self, args: &[&str]) -> Result<()> {
        Run::new("openssl").args(args).within(self.0.folder()).success().map(drop)
    }

    /// An SVID for that key, signed by the root.
    fn leaf(&self, name: &str, primes: &str, bits: &str) -> Result<()> {
        let (key_file, csr, certificate) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        self.openssl(&["genrsa", "-primes", primes, "-out", &key_file, bits])?;
        self.openssl(&["req", "-new", "-key", &key_file, "-subj", "/CN=x", "-out", &csr])?;
        let extensions = self.path("extensions");
        place::write(
            self.0.path("extensions").as_path(),
            "subjectAltName=URI:spiffe://example.org/x\nkeyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE\n",
        )?;
        let sign = ["x509", "-req", "-in", &csr, "-CA", "root.pem", "-CAkey", "root.key", "-days", "1"];
        self.openssl(&[&sign[..], &["-extfile", &extensions, "-out", &certificate]].concat())
    }

    /// Whether the server takes the certificate. With TLS 1.2 that is part of the handshake.
    fn is_taken(&self, name: &str, more: &[&str]) -> Result<bool> {
        let connect = format!("127.0.0.1:{}", self.0.server.port);
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let client = ["s_client", "-tls1_2", "-connect", &connect, "-alpn", "h2"];
        let output = Run::new("openssl")
            .args(&[&client[..], &["-cert", &certificate, "-key", &key], more].concat())
            .within(self.0.folder())
            .input("")
            .output()?;
        let shown = output.to_string();
        match (shown.contains("SSL alert number"), output.code) {
            (false, 0) => Ok(true),
            (true, code) if code != 0 => Ok(false),
            _ => Err(Error::new(shown)),
        }
    }
}

pub(super) fn too_large() -> Outcome {
    let mut site = Site::new()?;
    let plugin = format!(
        "    UpstreamAuthority \"disk\" {{\n        plugin_data {{\n            cert_file_path = \"{}\"\n            key_file_path = \
         \"{}\"\n        }}\n    }}\n",
        text(&site.path("root.pem")),
        text(&site.path("root.key")),
    );
    site.server.plugins = plugin;
    let folder = Folder(&site);
    let ec = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "root.key"];
    folder.openssl(&ec)?;
    let root =
        ["req", "-x509", "-new", "-key", "root.key", "-subj", "/CN=root", "-days", "2", "-out", "root.pem"];
    folder.openssl(&root)?;
    folder.leaf("usual", "2", "2048")?;
    folder.leaf("large", "3", "4096")?;
    // Of five primes, which are found sooner; whoever verifies sees no difference.
    folder.leaf("huge", "5", "10240")?;
    let root = place::read(&site.path("root.pem"))?;
    place::write(&site.path("chain.pem"), &root.repeat(100))?;
    place::write(&site.path("short.pem"), &root)?;

    let server = site.start_server()?;
    for (name, more, is_taken) in [
        ("usual", &[][..], true),
        ("large", &[], true),
        ("huge", &[], false),
        ("usual", &["-cert_chain", "short.pem"], true),
        ("usual", &["-cert_chain", "chain.pem"], false),
    ] {
        let found = folder.is_taken(name, more).map_err(|error| server.error(&error.to_string()))?;
        assert_eq!(found, is_taken, "{name} {more:?}");
    }
    site.cli(&["healthcheck"])?;
    Ok(())
}
