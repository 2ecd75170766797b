//! What is asked of the operating system: all unsafe code of this package.
//!
//! What a system cannot do, or refuses, is said in the log once and changes nothing else.

use std::io;

/// The lowest priority there is.
#[cfg(target_os = "linux")]
const LOWEST: u8 = 19;

/// Gives way to other processes: the threads that this one begins from now on have the priority, too.
pub(crate) fn lower_priority(steps: u8) {
    #[cfg(unix)]
    if steps > 0 {
        #[expect(unsafe_code, reason = "the C library's call; it touches no memory of this process")]
        // SAFETY: setpriority takes three numbers.
        let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, i32::from(steps)) } != 0;
        if refused {
            tracing::warn!(nice = steps, "The priority stays as it is: {}", io::Error::last_os_error());
        }
    }
    // A process that is only nice still keeps a core for milliseconds after somebody else wants it.
    #[cfg(target_os = "linux")]
    if steps == LOWEST {
        let none = libc::sched_param { sched_priority: 0 };
        #[expect(unsafe_code, reason = "the C library's call; it only reads what it is given")]
        // SAFETY: the pointer is to a value that lives until the call returns.
        let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const none) } != 0;
        if refused {
            tracing::warn!("It does not run as idle work: {}", io::Error::last_os_error());
        }
    }
}

/// A process that stands still until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it continues the process"]
pub(crate) struct Stopped {
    process: i32,
}

impl Stopped {
    /// Stops a child that is not waited for yet, so that its id is its own, and that called [`survive_a_stop`].
    ///
    /// # Errors
    /// There is no such process, or the system is not Linux: elsewhere a stopped process would outlive this one.
    pub(crate) fn stop(child: u32) -> io::Result<Self> {
        if !cfg!(target_os = "linux") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let process = i32::try_from(child).map_err(io::Error::other)?;
        signal(process, libc::SIGSTOP)?;
        Ok(Self { process })
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It fails if the process is gone, which is then as good.
        let _ = signal(self.process, libc::SIGCONT);
    }
}

fn signal(process: i32, number: i32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "the C library's call; it touches no memory of this process")]
    // SAFETY: kill takes two numbers.
    let refused = unsafe { libc::kill(process, number) } != 0;
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has this process go on if whoever stopped it, its parent, dies meanwhile. It can then see to its own end.
pub(crate) fn survive_a_stop() {
    #[cfg(target_os = "linux")]
    {
        #[expect(unsafe_code, reason = "the C library's call; it touches no memory of this process")]
        // SAFETY: prctl takes numbers with this option.
        let refused = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCONT) } != 0;
        if refused {
            tracing::warn!("Stopped, it outlives its server: {}", io::Error::last_os_error());
        }
    }
}
