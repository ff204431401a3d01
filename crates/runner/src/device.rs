//! From a name in a config to a device that computes what it should.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, Result, anyhow, bail};
use briquette_core::selftest;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

/// What computes a run, where it is not the CPU.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Adapter {
    /// The adapter's own name.
    pub name: String,
    /// The interface through which it is driven.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
}

impl std::fmt::Display for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}, driver {}", self.name, self.backend, self.driver)
    }
}

/// The device of this name, held against the CPU before it gets work ([`selftest::check`]), and what it is.
///
/// # Errors
/// As [`device`]; where no driver offers such a device, or it does not open; one that computes wrongly.
pub fn open(name: &str) -> Result<(Device, Option<Adapter>)> {
    let device = device(name)?;
    if device == Device::flex() {
        return Ok((device, None));
    }
    let adapter = adapter(name, &device)?;
    // A backend that fails underneath panics; what it says there is all that it says.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let tested = catch_unwind(AssertUnwindSafe(|| (adapter.clone().or_else(|| card(name, &device)), selftest::check(&device))));
    std::panic::set_hook(hook);
    match tested {
        Ok((adapter, found)) => {
            found.map_err(|error| anyhow!("device '{name}'{}: {error}", of(adapter.as_ref())))?;
            Ok((device, adapter))
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("no reason is given").lines().next().unwrap_or_default();
            bail!("device '{name}'{} fails a first computation: {text}; take another device, or `flex`", of(adapter.as_ref()))
        }
    }
}

fn of(adapter: Option<&Adapter>) -> String {
    adapter.map(|adapter| format!(" ({adapter})")).unwrap_or_default()
}

/// Opens the adapter of a graphics interface.
#[cfg(any(feature = "wgpu", feature = "vulkan"))]
fn adapter(name: &str, device: &Device) -> Result<Option<Adapter>> {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    use burn::backend::wgpu::graphics::AutoGraphicsApi;
    use burn::backend::wgpu::{RuntimeOptions, try_init_setup};
    use burn::backend::{CubeDevice, DispatchDevice};
    let DispatchDevice::Cube(CubeDevice::Wgpu(selected)) = device.as_dispatch() else { return Ok(None) };
    // What is open cannot be opened again.
    static OPEN: Mutex<BTreeMap<String, Adapter>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(adapter) = open.get(&format!("{selected:?}")) {
        return Ok(Some(adapter.clone()));
    }
    let setup = try_init_setup::<AutoGraphicsApi>(selected, RuntimeOptions::default()).map_err(|error| {
        let detail = "is a driver installed, and does VK_DRIVER_FILES, if it is set, name one? `flex` computes on the CPU";
        anyhow!("device '{name}' does not open: {error}; {detail}")
    })?;
    let info = setup.adapter.get_info();
    let driver = [info.driver, info.driver_info].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
    let adapter = Adapter { name: info.name, backend: format!("{:?}", info.backend).to_lowercase(), driver };
    open.insert(format!("{selected:?}"), adapter.clone());
    Ok(Some(adapter))
}

#[cfg(not(any(feature = "wgpu", feature = "vulkan")))]
fn adapter(_: &str, _: &Device) -> Result<Option<Adapter>> {
    Ok(None)
}

/// What a device of CubeCL that is no adapter of a graphics interface says of itself: one of CUDA, but compiled with the others too, for they can be
/// built without CUDA's tools.
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
fn card(name: &str, device: &Device) -> Option<Adapter> {
    let card = device.identity()?.name;
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let version = |word: &&str| word.contains('.') && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let driver = module.split_whitespace().find(version).unwrap_or("unknown").to_string();
    Some(Adapter { name: card, backend: name.split(':').next().unwrap_or(name).to_string(), driver })
}

#[cfg(not(any(feature = "cuda", feature = "wgpu", feature = "vulkan")))]
fn card(_: &str, _: &Device) -> Option<Adapter> {
    None
}

/// Starts this program anew with larger stacks for all threads where the device compiles kernels while it runs: compilers go deep, in threads
/// of their own that take the size from the environment, once.
///
/// # Errors
/// When the program cannot be started.
pub fn deepen(name: &str) -> Result<()> {
    let compiles = ["wgpu", "vulkan", "cuda"].contains(&name.split(':').next().unwrap_or_default());
    let has = std::env::var(STACK_VARIABLE).ok().and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or(0);
    if !compiles || has >= STACK {
        return Ok(());
    }
    let mut again = std::process::Command::new(std::env::current_exe().context("cannot find this program's file")?);
    again.args(std::env::args_os().skip(1)).env(STACK_VARIABLE, STACK.to_string());
    #[cfg(unix)]
    return Err(std::os::unix::process::CommandExt::exec(&mut again)).context("cannot start this program with larger stacks");
    #[cfg(not(unix))]
    {
        let status = again.status().context("cannot start this program with larger stacks")?;
        std::process::exit(status.code().unwrap_or(1))
    }
}

/// The variable by which all threads of a Rust program are given their stack, in bytes.
const STACK_VARIABLE: &str = "RUST_MIN_STACK";
const STACK: u64 = 1 << 28;

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
