//! From a name in a config to a device.

use anyhow::{Context as _, Result, anyhow, bail};
use burn::tensor::Device;

/// The device of this name: a backend and, after a colon, the number of one of its devices.
///
/// # Errors
/// Unknown names, devices that the machine does not have, and backends that this build leaves out, with the way to get them.
pub fn device(name: &str) -> Result<Device> {
    let (backend, index) = parse(name)?;
    match backend {
        "auto" | "flex" => nth(name, index.unwrap_or(0), [Device::flex()]),
        #[cfg(feature = "ndarray")]
        "ndarray" => nth(name, index.unwrap_or(0), [Device::ndarray()]),
        #[cfg(feature = "wgpu")]
        "wgpu" => match index {
            None => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            Some(index) => nth(name, index, Device::enumerate(burn::tensor::DeviceType::Wgpu)),
        },
        #[cfg(feature = "vulkan")]
        "vulkan" => match index {
            None => Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
            Some(index) => nth(name, index, Device::enumerate(burn::tensor::DeviceType::Vulkan)),
        },
        #[cfg(feature = "cuda")]
        "cuda" => nth(name, index.unwrap_or(0), Device::enumerate(burn::tensor::DeviceType::Cuda)),
        #[allow(unreachable_patterns)] // Those that a feature has brought in are above.
        "ndarray" | "wgpu" | "vulkan" | "cuda" => bail!(
            "device '{name}': this binary was built without it; `cargo xtask run` builds what a config asks for, or build with `--features {backend}`"
        ),
        _ => {
            let known = ["auto", "flex", "ndarray", "wgpu", "wgpu:0", "vulkan", "vulkan:0", "cuda", "cuda:0"];
            Err(briquette_core::Error::unknown("device", name, known).into())
        }
    }
}

/// The backend and the number.
fn parse(name: &str) -> Result<(&str, Option<usize>)> {
    let Some((backend, index)) = name.split_once(':') else { return Ok((name, None)) };
    let number = index.bytes().all(|byte| byte.is_ascii_digit()).then(|| index.parse().ok()).flatten();
    let number = number.with_context(|| format!("device '{name}': after the colon stands a number, as in '{backend}:0'"))?;
    Ok((backend, Some(number)))
}

/// The device of this number among those of a backend.
fn nth<T>(name: &str, index: usize, found: impl IntoIterator<Item = T>) -> Result<T> {
    let mut found: Vec<T> = found.into_iter().collect();
    let backend = name.split(':').next().unwrap_or(name);
    match found.len() {
        count if index < count => Ok(found.swap_remove(index)),
        0 => Err(anyhow!("device '{name}': this machine has no device of '{backend}'")),
        1 => Err(anyhow!("device '{name}': this machine has one device of '{backend}', '{backend}:0'")),
        count => Err(anyhow!("device '{name}': this machine has '{backend}:0' to '{backend}:{}'", count - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_selects_the_device_or_is_refused() {
        assert_eq!(nth("cuda:1", 1, ["first", "second"]).unwrap(), "second");
        let refusal = |name, index, found: &[u8]| nth(name, index, found.to_vec()).unwrap_err().to_string();
        assert_eq!(refusal("cuda:3", 3, &[0, 1]), "device 'cuda:3': this machine has 'cuda:0' to 'cuda:1'");
        assert_eq!(refusal("wgpu:1", 1, &[0]), "device 'wgpu:1': this machine has one device of 'wgpu', 'wgpu:0'");
        assert_eq!(refusal("vulkan:0", 0, &[]), "device 'vulkan:0': this machine has no device of 'vulkan'");
        assert_eq!(device("flex:0").unwrap(), Device::flex());
        assert!(device("flex:1").is_err() && device("auto:1").is_err());
    }

    #[test]
    fn what_is_no_number_after_the_colon_is_refused() {
        assert_eq!((parse("wgpu").unwrap(), parse("cuda:12").unwrap()), (("wgpu", None), ("cuda", Some(12))));
        for junk in ["wgpu:", "wgpu:x", "vulkan:-1", "cuda:+1", "cuda:0:1", "flex: 0", "wgpu:99999999999999999999"] {
            let error = format!("{:#}", device(junk).unwrap_err());
            assert!(error.contains(&format!("device '{junk}': after the colon stands a number")), "{error}");
        }
        assert!(device("gpu").unwrap_err().to_string().contains("unknown device 'gpu'"));
    }
}
