//! placeholder during the first build

/// x
#[derive(Clone)]
pub struct TlsInfo;
/// y
pub struct P;
impl P {
    /// x
    pub fn id(&self) -> &str {
        ""
    }
}
impl TlsInfo {
    /// x
    pub fn peer(&self) -> Option<&P> {
        None
    }
}
