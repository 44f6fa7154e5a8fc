//! A TPM in software (swtpm), made by a manufacturer of its own, and identities provisioned in it with tpm2-tools.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{Output, Run};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::{place, wait};

/// The programs that this needs, of the Debian packages swtpm, swtpm-tools and tpm2-tools.
pub const PROGRAMS: [&str; 3] = ["swtpm", "swtpm_setup", "tpm2"];

/// A TPM is ready in a fraction of a second.
const SOON: Duration = Duration::from_secs(40);
/// What a storage root key may do.
const STORAGE: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";

/// A maker of TPMs: the authority that signs their endorsement certificates.
#[derive(Clone, Debug)]
pub struct Manufacturer {
    folder: PathBuf,
}

impl Manufacturer {
    /// One whose files lie in `folder`; its keys are made with its first TPM.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let shown = folder.display();
        place::write(
            &folder.join("localca.conf"),
            &format!(
                "statedir = {shown}\nsigningkey = {shown}/key.pem\nissuercert = {shown}/issuer.pem\n\
                 certserial = {shown}/serial\n"
            ),
        )?;
        place::write(
            &folder.join("localca.options"),
            "--platform-manufacturer Acme\n--platform-version 1\n--platform-model Virtual\n",
        )?;
        place::write(
            &folder.join("setup.conf"),
            &format!(
                "create_certs_tool=swtpm_localca\ncreate_certs_tool_config={shown}/localca.conf\n\
                 create_certs_tool_options={shown}/localca.options\n"
            ),
        )?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The certificate that signs endorsement certificates, PEM.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("issuer.pem")
    }

    /// Makes a TPM whose state lies in `state`, with or without a certificate of its endorsement key.
    ///
    /// # Errors
    /// swtpm_setup fails.
    pub fn make(&self, state: &Path, with_certificate: bool) -> Result<()> {
        std::fs::create_dir_all(state).map_err(|error| Error::doing(state.display(), error))?;
        let user = rustix::process::getuid().as_raw().to_string();
        let mut run = Run::new("swtpm_setup").args(&["--tpm2", "--overwrite", "--tpmstate"]).arg(state);
        // Root would run it as another user, who may not enter the folder.
        if user == "0" {
            run = run.args(&["--runas", "root"]);
        }
        if with_certificate {
            run = run.args(&["--create-ek-cert", "--config"]).arg(self.folder.join("setup.conf"));
        }
        run.success().map(|_| ())
    }
}

/// A running TPM. It ends with the value.
pub struct Swtpm {
    /// Dropped first, so that it has ended before its folder goes.
    _process: Daemon,
    folder: PathBuf,
}

impl Swtpm {
    /// Starts the TPM whose state a [`Manufacturer`] put into `folder/state`. Its sockets are made in `folder`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(folder: &Path) -> Result<Self> {
        let socket = folder.join("tpm");
        let args = [
            "socket".to_owned(),
            "--tpm2".to_owned(),
            "--tpmstate".to_owned(),
            format!("dir={}", folder.join("state").display()),
            "--server".to_owned(),
            format!("type=unixio,path={}", socket.display()),
            "--ctrl".to_owned(),
            format!("type=unixio,path={}.ctrl", socket.display()),
            "--flags".to_owned(),
            "not-need-init,startup-clear".to_owned(),
            // It would tell of each connection.
            "--log".to_owned(),
            "level=0".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut process = Daemon::start("swtpm", Path::new("swtpm"), &args, folder)?;
        let found = wait::until("socket of the TPM", SOON, || {
            if !process.is_running() {
                return Some(false);
            }
            UnixStream::connect(&socket).is_ok().then_some(true)
        });
        match found {
            Ok(true) => Ok(Self { _process: process, folder: folder.to_owned() }),
            Ok(false) => Err(process.error("it ended")),
            Err(error) => Err(process.error(&error.to_string())),
        }
    }

    /// The socket that takes commands.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("tpm")
    }

    /// A command of tpm2-tools on this TPM, run in its folder: `tool("nvread", &["0x1c00002"])`.
    ///
    /// # Errors
    /// It fails.
    pub fn tool(&self, name: &str, args: &[&str]) -> Result<Output> {
        Run::new("tpm2")
            .arg(name)
            .args(args)
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.socket().display()))
            .within(&self.folder)
            .success()
    }

    /// Makes a key for a DevID below the storage root key, RSA with 2048 bits or else on P-256, and returns its files.
    /// `owner` is the password of the hierarchy, `password` that of the key; both may be empty.
    ///
    /// # Errors
    /// tpm2-tools fail.
    pub fn make_devid(&self, rsa: bool, owner: &str, password: &str, attributes: &str) -> Result<DevidKey> {
        let (parent, key) = if rsa {
            ("rsa2048:aes128cfb", "rsa2048:rsassa-sha256:null")
        } else {
            ("ecc256:aes128cfb", "ecc256:ecdsa-sha256:null")
        };
        let root = ["-C", "o", "-P", owner, "-G", parent, "-a", STORAGE, "-c", "root.ctx"];
        self.tool("createprimary", &root)?;
        let args = [
            "-C",
            "root.ctx",
            "-G",
            key,
            "-a",
            attributes,
            "-p",
            password,
            "-u",
            "devid.pub",
            "-r",
            "devid.priv",
            "-f",
            "pem",
            "-o",
            "devid.key.pem",
        ];
        self.tool("create", &args)?;
        // There is no resource manager before it that would do so.
        self.tool("flushcontext", &["-t"])?;
        let file = |name: &str| self.folder.join(name);
        Ok(DevidKey { public: file("devid.pub"), private: file("devid.priv"), pem: file("devid.key.pem") })
    }

    /// What is loaded: keys and sessions, one a line.
    ///
    /// # Errors
    /// tpm2-tools fail.
    pub fn loaded(&self) -> Result<String> {
        let keys = self.tool("getcap", &["handles-transient"])?.stdout;
        Ok(keys + &self.tool("getcap", &["handles-loaded-session"])?.stdout)
    }
}

/// What a DevID's key may do.
pub const DEVID: &str = "sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth";

/// The files of a key as tpm2-tools write them.
#[derive(Clone, Debug)]
pub struct DevidKey {
    /// TPM2B_PUBLIC
    pub public: PathBuf,
    /// TPM2B_PRIVATE
    pub private: PathBuf,
    /// The public key for certificates, PEM.
    pub pem: PathBuf,
}
