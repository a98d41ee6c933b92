//! What a client asks for by an export's name: `volume` or `volume@workload`.

use std::{fmt, str::FromStr};

/// Longest name of a workload.
pub const WORKLOAD_BYTES_MAX: usize = 255;

/// An export and, where the client says so, what uses it; for accounting only, it grants nothing.
///
/// Names of volumes have no `@`, so the first one ends the export's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportName {
    pub export: String,
    pub workload: Option<String>,
}

/// The text names no export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an export's name is `volume` or `volume@workload`, the workload at most 255 printable ASCII characters")]
pub struct BadExportName;

impl FromStr for ExportName {
    type Err = BadExportName;
    fn from_str(text: &str) -> Result<Self, BadExportName> {
        let Some((export, workload)) = text.split_once('@') else {
            return Ok(Self { export: text.into(), workload: None });
        };
        let printable = workload.bytes().all(|byte| byte.is_ascii_graphic());
        if workload.is_empty() || workload.len() > WORKLOAD_BYTES_MAX || !printable {
            return Err(BadExportName);
        }
        Ok(Self { export: export.into(), workload: Some(workload.into()) })
    }
}

impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.export)?;
        match &self.workload {
            Some(workload) => write!(f, "@{workload}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for text in ["vol", "vol@web-7", "", "vol@a@b"] {
            let name: ExportName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            assert!(!name.export.contains('@'));
        }
        for bad in ["vol@", "vol@a b", "vol@\u{e4}", &format!("vol@{}", "x".repeat(256))] {
            assert_eq!(bad.parse::<ExportName>(), Err(BadExportName), "{bad}");
        }
    }
}
