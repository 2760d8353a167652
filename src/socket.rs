//! TCP sockets with the options asked for, and reads that bring the kernel's time of arrival. It
//! opens and tunes; it keeps no socket and never waits.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use mio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Cause, ConfigError};
use crate::transport::RECV_BYTES;
use crate::warning::{Warning, Warnings};

/// An interface's name is shorter than this (Linux, IFNAMSIZ).
const INTERFACE_BYTES: usize = 16;

/// What every socket is given before it connects.
#[derive(Clone, Debug, Default)]
pub(crate) struct SocketOptions {
    /// SO_RCVBUF.
    pub(crate) receive_buffer_bytes: Option<usize>,
    /// SO_BUSY_POLL.
    pub(crate) busy_poll_us: Option<u32>,
    /// TCP_USER_TIMEOUT; zero leaves it to the system.
    pub(crate) user_timeout: Duration,
    /// Our end's address.
    pub(crate) bind_address: Option<IpAddr>,
    /// SO_BINDTODEVICE.
    pub(crate) bind_interface: Option<String>,
    /// SO_TIMESTAMPNS.
    pub(crate) kernel_timestamps: bool,
}

impl SocketOptions {
    /// Whether this machine has the address and the interface.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if let Some(address) = self.bind_address {
            let unusable = match UdpSocket::bind((address, 0)) {
                _ if address.is_unspecified() => Some("it means any; leave the setting out".into()),
                Ok(_) => None,
                Err(error) => Some(format!("{error}; name one of this machine's (ip -br address)")),
            };
            if let Some(problem) = unusable {
                let problem = format!("cannot use {address}: {problem}");
                return Err(ConfigError::Invalid { setting: "bind_address", problem });
            }
        }
        if let Some(name) = &self.bind_interface {
            let fits = (1..INTERFACE_BYTES).contains(&name.len()) && !name.contains('\0');
            if !fits || nix::net::if_::if_nametoindex(name.as_str()).is_err() {
                let problem = format!("no interface {name:?}; name one of ip -br link");
                return Err(ConfigError::Invalid { setting: "bind_interface", problem });
            }
        }
        Ok(())
    }

    /// Begins a connection. An option the kernel refuses is a warning where the connection is as
    /// good without it, else a cause.
    pub(crate) fn connect(
        &self,
        peer: SocketAddr,
        warnings: &Warnings,
    ) -> Result<TcpStream, Cause> {
        let failed = |error: io::Error| io_cause(&error, peer);
        let domain = Domain::for_address(peer);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        // Commands and pongs are small and must not wait for acknowledgements.
        socket.set_tcp_nodelay(true).map_err(failed)?;
        for (setting, problem) in self.tune(&socket) {
            warnings.add(Warning::Setting { setting, problem });
        }
        self.bind(&socket).map_err(|message| Cause::Local { message })?;
        match socket.connect(&peer.into()) {
            Ok(()) => {}
            Err(error) if is(&error, Errno::EINPROGRESS) => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(TcpStream::from_std(socket.into()))
    }

    /// Sets what can be done without; what could not be set, and what to do.
    fn tune(&self, socket: &Socket) -> Vec<(&'static str, String)> {
        let mut refused = Vec::new();
        if let Some(bytes) = self.receive_buffer_bytes {
            match set_receive_buffer(socket, bytes) {
                Ok(granted) if granted >= bytes => {}
                Ok(granted) => refused.push((
                    "receive_buffer_bytes",
                    format!(
                        "the kernel granted {granted} of {bytes}; raise its limit (sysctl -w \
                         net.core.rmem_max={bytes})"
                    ),
                )),
                Err(error) => refused.push((
                    "receive_buffer_bytes",
                    format!("the kernel refused {bytes} ({error}); leave the setting out"),
                )),
            }
        }
        if let Some(us) = self.busy_poll_us
            && let Err(error) = socket.set_busy_poll(us)
        {
            let fix = format!(
                "the kernel refused {us} ({error}), and sockets are not polled; give the process \
                 CAP_NET_ADMIN, or set it for all (sysctl -w net.core.busy_read={us})"
            );
            refused.push(("busy_poll_us", fix));
        }
        let timeout = Some(self.user_timeout).filter(|timeout| !timeout.is_zero());
        if let Some(timeout) = timeout
            && let Err(error) = socket.set_tcp_user_timeout(Some(timeout))
        {
            let fix = format!("the kernel refused {timeout:?} ({error}); set it to 0s");
            refused.push(("tcp_user_timeout", fix));
        }
        if self.kernel_timestamps
            && let Err(error) = setsockopt(socket, sockopt::ReceiveTimestampns, &true)
        {
            let fix = format!(
                "the kernel refused ({}), and the engine's clock is used; set it to false",
                error.desc()
            );
            refused.push(("kernel_timestamps", fix));
        }
        refused
    }

    fn bind(&self, socket: &Socket) -> Result<(), String> {
        if let Some(name) = &self.bind_interface {
            socket.bind_device(Some(name.as_bytes())).map_err(|error| {
                let fix = if is(&error, Errno::EPERM) {
                    "give the process CAP_NET_RAW"
                } else {
                    "name one of ip -br link"
                };
                format!("bind_interface: cannot use {name} ({error}); {fix}")
            })?;
        }
        if let Some(address) = self.bind_address {
            socket.bind(&SocketAddr::new(address, 0).into()).map_err(|error| {
                format!(
                    "bind_address: cannot use {address} ({error}); name one of this machine's \
                     (ip -br address)"
                )
            })?;
        }
        Ok(())
    }
}

/// Sets it and tells what came of it: the kernel keeps, and tells, twice what one asks for.
fn set_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<usize> {
    socket.set_recv_buffer_size(bytes)?;
    Ok(socket.recv_buffer_size()? / 2)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(errno)
}

/// Why the network, or this machine, refused.
pub(crate) fn io_cause(error: &io::Error, peer: SocketAddr) -> Cause {
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => Cause::Reset,
        _ if is(error, Errno::EMFILE) || is(error, Errno::ENFILE) => {
            Cause::Local { message: format!("{error}; raise the limit of open files (ulimit -n)") }
        }
        _ => Cause::Tcp { address: peer.to_string(), message: error.to_string() },
    }
}

/// Reads together with the time at which the last of the bytes reached this machine.
pub(crate) struct ArrivalTimes {
    control: Vec<u8>,
    scratch: Box<[u8]>,
}

impl ArrivalTimes {
    pub(crate) fn new() -> Self {
        let scratch = vec![0; RECV_BYTES].into_boxed_slice();
        Self { control: nix::cmsg_space!(TimeSpec), scratch }
    }

    /// Reads once and appends. No time where the kernel has none for these bytes.
    pub(crate) fn read(
        &mut self,
        socket: &TcpStream,
        bytes: &mut Vec<u8>,
    ) -> io::Result<(usize, Option<SystemTime>)> {
        let mut parts = [IoSliceMut::new(&mut self.scratch)];
        let control = Some(self.control.as_mut_slice());
        let read = recvmsg::<()>(socket.as_raw_fd(), &mut parts, control, MsgFlags::empty())?;
        let count = read.bytes;
        let time = read.cmsgs().ok().and_then(|mut messages| {
            messages.find_map(|message| match message {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                _ => None,
            })
        });
        bytes.extend_from_slice(self.scratch.get(..count).unwrap_or_default());
        Ok((count, time.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use nix::sys::socket::getsockopt;
    use socket2::SockRef;

    use super::*;

    fn all() -> SocketOptions {
        SocketOptions {
            receive_buffer_bytes: Some(64 << 10),
            busy_poll_us: Some(0),
            user_timeout: Duration::from_secs(25),
            bind_address: Some([127, 0, 0, 2].into()),
            bind_interface: Some("lo".to_owned()),
            kernel_timestamps: true,
        }
    }

    fn connected(
        options: &SocketOptions,
    ) -> (TcpStream, std::net::TcpStream, SocketAddr, Vec<Warning>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let warnings = Warnings::default();
        let socket = options.connect(listener.local_addr().unwrap(), &warnings).unwrap();
        let (peer, address) = listener.accept().unwrap();
        (socket, peer, address, warnings.all())
    }

    #[test]
    fn every_option_is_really_set() {
        all().check().unwrap();
        let (socket, _peer, address, warnings) = connected(&all());
        assert_eq!(warnings, []);
        assert_eq!(address.ip(), IpAddr::from([127, 0, 0, 2]));
        let options = SockRef::from(&socket);
        assert_eq!(options.recv_buffer_size().unwrap(), 128 << 10);
        assert_eq!(options.busy_poll().unwrap(), 0);
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(Duration::from_secs(25)));
        assert_eq!(options.device().unwrap().as_deref(), Some(&b"lo"[..]));
        assert!(options.tcp_nodelay().unwrap());
        assert!(getsockopt(&socket, sockopt::ReceiveTimestampns).unwrap());
    }

    #[test]
    fn without_settings_the_system_decides() {
        let (socket, _peer, address, warnings) = connected(&SocketOptions::default());
        assert_eq!(warnings, []);
        assert_eq!(address.ip(), IpAddr::from([127, 0, 0, 1]));
        let options = SockRef::from(&socket);
        assert_eq!(options.tcp_user_timeout().unwrap(), None);
        assert_eq!(options.device().unwrap(), None);
        assert!(options.tcp_nodelay().unwrap());
        assert!(!getsockopt(&socket, sockopt::ReceiveTimestampns).unwrap());
    }

    #[test]
    fn a_buffer_the_kernel_cuts_short_is_told_with_the_limit_to_raise() {
        let options =
            SocketOptions { receive_buffer_bytes: Some(1 << 30), ..SocketOptions::default() };
        let (_socket, _peer, _, warnings) = connected(&options);
        let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
        let text = warning.to_string();
        assert!(text.starts_with("receive_buffer_bytes: the kernel granted"), "{text}");
        assert!(text.ends_with("net.core.rmem_max=1073741824)"), "{text}");
    }

    #[test]
    fn what_the_kernel_refuses_is_told_and_the_connection_is_made() {
        // To the kernel this is less than nothing, which it never takes.
        let options = SocketOptions { busy_poll_us: Some(u32::MAX), ..SocketOptions::default() };
        let (_socket, _peer, _, warnings) = connected(&options);
        let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
        let text = warning.to_string();
        assert!(text.starts_with("busy_poll_us: the kernel refused 4294967295 (Inv"), "{text}");
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    }

    #[test]
    fn what_this_machine_does_not_have_is_refused_by_name() {
        let refused = |options: SocketOptions| options.check().unwrap_err().to_string();
        for address in ["192.0.2.1", "0.0.0.0", "2001:db8::1"] {
            let bind_address = Some(address.parse().unwrap());
            let text = refused(SocketOptions { bind_address, ..SocketOptions::default() });
            assert!(text.starts_with(&format!("bind_address: cannot use {address}")), "{text}");
        }
        for name in ["", "no-such-if", "a-name-much-too-long", "l\0o"] {
            let bind_interface = Some(name.to_owned());
            let text = refused(SocketOptions { bind_interface, ..SocketOptions::default() });
            assert!(text.starts_with("bind_interface: no interface"), "{text}");
        }
        let options =
            SocketOptions { bind_interface: Some("no-such-if".into()), ..SocketOptions::default() };
        let cause = options.connect(([127, 0, 0, 1], 1).into(), &Warnings::default()).unwrap_err();
        assert!(cause.to_string().contains("bind_interface: cannot use no-such-if"), "{cause}");
    }

    #[test]
    fn the_kernels_time_lies_between_sending_and_reading() {
        let (socket, mut peer, _, _) = connected(&all());
        let mut times = ArrivalTimes::new();
        // The kernel begins to stamp a moment after the first socket asks for it.
        for _ in 0..1_000 {
            let sent = crate::clock::wall();
            peer.write_all(b"arrived").unwrap();
            let until = crate::clock::now() + Duration::from_millis(5);
            while crate::clock::now() < until {}
            let mut bytes = b"it ".to_vec();
            let (count, time) = times.read(&socket, &mut bytes).unwrap();
            assert_eq!((&bytes[..], count), (&b"it arrived"[..], 7), "appended");
            if let Some(time) = time {
                let read = crate::clock::wall();
                assert!(sent <= time && time < read, "{sent:?} {time:?} {read:?}");
                assert!(read.duration_since(time).unwrap() > Duration::from_millis(4));
                return;
            }
        }
        panic!("no read was stamped");
    }

    #[test]
    fn an_empty_socket_blocks_and_a_finished_one_ends() {
        let (socket, peer, _, _) = connected(&all());
        let mut times = ArrivalTimes::new();
        let blocked = times.read(&socket, &mut Vec::new()).unwrap_err();
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        drop(peer);
        let ended = loop {
            match times.read(&socket, &mut Vec::new()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other.unwrap(),
            }
        };
        assert_eq!(ended.0, 0);
    }
}
