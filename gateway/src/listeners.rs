//! The listening sockets: one for each accepting shard and address, which share a port by SO_REUSEPORT, so that the
//! kernel spreads connections.
//!
//! Where a core has many shards, some of them accept for all. A connection goes on to its user's shard after LOGIN
//! anyway, and what arrives at few sockets is accepted many at a time: 54 shards on one core spent a tenth less on a
//! login than when each of them listened.

use crate::config::{At, Endpoint};
use crate::limits::Limits;
use crate::startup::StartupError;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Connections that may wait to be accepted. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// Shards of a core that accept. Each holds the connections that have not logged in yet, beside its users.
const ACCEPTING_PER_CORE: usize = 8;

/// What the kernel takes for a worker before it can be on its way.
const WORKER_UNSENT_BYTES_MAX: u32 = 256 << 10;

/// How often, and how long apart, a port that is in use is tried again.
const BIND_TRIES: u32 = 10;
const BIND_PAUSE: Duration = Duration::from_millis(100);

/// Bound and listening sockets.
#[derive(Debug)]
pub struct Listeners {
    /// The sockets of each shard, one for each place; the first shards have some, the others none.
    pub by_shard: Vec<Vec<OwnedFd>>,
    /// For each place whether every connection has to begin with TLS there.
    pub tls_only: Vec<bool>,
    /// The places as a person is told of them.
    pub places: Vec<String>,
    /// Their addresses, with the port that was taken where 0 was asked for; Unix sockets have none.
    pub addresses: Vec<SocketAddr>,
    /// Those of them where not everything has to begin with TLS.
    pub in_clear: Vec<SocketAddr>,
    /// The files of Unix sockets, to be kept for as long as they are listened on.
    pub files: Vec<SocketFile>,
}

/// The file of a Unix socket. It is removed with this, unless another process has made one of its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and number of the file.
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(SocketFile { path: path.to_owned(), id: id(path)? })
    }
}

/// Device and number of the file at `path`.
fn id(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id(&self.path).is_ok_and(|there| there == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a Unix socket's file stays behind");
        }
    }
}

impl Listeners {
    /// Listens in every place for those of `shards` shards that accept. Connections inherit from `limits` what the
    /// kernel holds for them.
    ///
    /// # Errors
    /// The first place that cannot be listened on. One where another process listens is among those, even if that would
    /// share it.
    pub fn bind(endpoints: &[Endpoint], shards: u16, limits: &Limits) -> Result<Self, StartupError> {
        let by_shard = (0..shards).map(|_| Vec::new()).collect();
        let (tls_only, places, addresses, in_clear, files) = Default::default();
        let mut listeners = Listeners { by_shard, tls_only, places, addresses, in_clear, files };
        for Endpoint { at, tls_only } in endpoints {
            let both = matches!(at, At::BothFamilies(_));
            let known = listeners.addresses.len();
            let place = match at {
                At::Ip(address) => listeners.bind_ip(*address, both, limits)?.to_string(),
                At::BothFamilies(port) => {
                    let all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port);
                    format!("{} for IPv6 and IPv4", listeners.bind_ip(all, both, limits)?)
                }
                At::Unix(path) => {
                    patiently(|| listeners.bind_unix(path))
                        .map_err(|error| StartupError::ListenUnix(path.clone(), error))?;
                    format!("unix:{}", path.display())
                }
            };
            if !*tls_only {
                listeners.in_clear.extend_from_slice(&listeners.addresses[known..]);
            }
            listeners.places.push(if *tls_only { format!("{place}, TLS only") } else { place });
            listeners.tls_only.push(*tls_only);
        }
        Ok(listeners)
    }

    fn bind_ip(&mut self, address: SocketAddr, both: bool, limits: &Limits) -> Result<SocketAddr, StartupError> {
        let bound = patiently(|| self.bind_address(address, both, limits));
        let bound = bound.map_err(|error| StartupError::Listen(address, error))?;
        self.addresses.push(bound);
        Ok(bound)
    }

    /// Makes an accept wait again, as a ring expects it, after somebody else has used the sockets without waiting.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_blocking(&self) -> io::Result<()> {
        self.by_shard.iter().flatten().try_for_each(|listener| SockRef::from(listener).set_nonblocking(false))
    }

    /// How many shards accept.
    fn accepting(&self) -> usize {
        let cores = core_affinity::get_core_ids().map_or(1, |cores| cores.len());
        accepting(self.by_shard.len(), cores)
    }

    /// One socket, which all accepting shards have: that of a Unix socket cannot be shared by port.
    fn bind_unix(&mut self, path: &Path) -> io::Result<()> {
        let address = SockAddr::unix(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        match socket.bind(&address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
                fs::remove_file(path)?;
                socket.bind(&address)?;
            }
            bound => bound?,
        }
        self.files.push(SocketFile::of(path)?);
        socket.listen(BACKLOG)?;
        let accepting = self.accepting();
        for shard in self.by_shard.iter_mut().take(accepting) {
            shard.push(socket.try_clone()?.into());
        }
        Ok(())
    }

    fn bind_address(&mut self, address: SocketAddr, both: bool, limits: &Limits) -> io::Result<SocketAddr> {
        // The first socket is bound alone, which fails if anybody listens there, and opens the port to the others only
        // then. A first one that shared would silently take a part of another gateway's connections.
        let first = socket(address, both)?;
        first.bind(&address.into())?;
        first.set_reuse_port(true)?;
        let bound =
            first.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the kernel bound no IP address"))?;
        let mut sockets = vec![first];
        for _ in 1..self.accepting() {
            let next = socket(address, both)?;
            next.set_reuse_port(true)?;
            next.bind(&bound.into())?;
            sockets.push(next);
        }
        for (shard, socket) in self.by_shard.iter_mut().zip(sockets) {
            // Inherited by accepted connections. Without the first a peer that never reads pins megabytes in the
            // kernel, beyond every bound of this process; without the second the kernel goes on for a quarter of an
            // hour with a peer that acknowledges nothing, after the close too.
            socket.set_tcp_notsent_lowat(limits.unsent_bytes_max)?;
            socket.set_tcp_user_timeout(Some(Duration::from_millis(limits.tcp_user_timeout_ms)))?;
            socket.listen(BACKLOG)?;
            shard.push(socket.into());
        }
        Ok(bound)
    }
}

/// How many of so many shards accept connections: the first ones, which are as many on each core.
fn accepting(shards: usize, cores: usize) -> usize {
    shards.min(ACCEPTING_PER_CORE * cores)
}

/// Listens on one address, shared with nobody: for the HTTP API.
///
/// # Errors
/// When the address cannot be listened on.
pub fn listen_alone(address: SocketAddr) -> Result<TcpListener, StartupError> {
    let listen = || {
        let socket = socket(address, false)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    patiently(listen).map_err(|error| StartupError::Listen(address, error))
}

/// Listens for workers, shared with nobody. The kernel holds as much for each of them as for anybody else of whom much
/// is queued.
///
/// # Errors
/// When the address cannot be listened on.
pub fn listen_for_workers(address: SocketAddr) -> Result<TcpListener, StartupError> {
    let listener = listen_alone(address)?;
    let socket = socket2::SockRef::from(&listener);
    // Inherited by accepted connections.
    socket.set_tcp_notsent_lowat(WORKER_UNSENT_BYTES_MAX).map_err(|error| StartupError::Listen(address, error))?;
    Ok(listener)
}

/// Tries for a while if somebody listens there: it may be the ring of a process that was killed a moment ago, which the
/// kernel takes down behind the process.
fn patiently<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..BIND_TRIES {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(BIND_PAUSE),
            other => return other,
        }
    }
    bind()
}

/// Whether the file is that of a Unix socket on which nobody listens any more: it outlives its process. One who listens
/// and has no room for another connection is not waited for.
fn is_left_over(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    is_socket && connect().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A socket to listen with. One of IPv6 takes IPv4 as well if it is for both families.
fn socket(address: SocketAddr, both: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of the last run that linger in TIME_WAIT must not hold up this one.
    socket.set_reuse_address(true)?;
    // Inherited by accepted connections: what a shard sends is gathered already.
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!both)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn bind(addresses: &[SocketAddr], shards: u16) -> Result<Listeners, StartupError> {
        let endpoints: Vec<Endpoint> =
            addresses.iter().map(|address| Endpoint { at: At::Ip(*address), tls_only: false }).collect();
        Listeners::bind(&endpoints, shards, &Limits::default())
    }

    #[test]
    fn every_shard_listens_on_the_one_port_that_was_free() {
        let listeners = bind(&[any(), any()], 5).unwrap();
        assert_eq!(listeners.by_shard.len(), 5);
        let [first, second] = listeners.addresses[..] else { panic!("two addresses: {:?}", listeners.addresses) };
        assert!(first.port() != 0 && second.port() != 0 && first != second);
        for sockets in &listeners.by_shard {
            let address = |socket| SockRef::from(socket).local_addr().unwrap().as_socket().unwrap();
            assert_eq!(sockets.iter().map(address).collect::<Vec<SocketAddr>>(), [first, second]);
        }
        // The kernel spreads connections over all of them.
        let _clients: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(first).unwrap()).collect();
        for sockets in &listeners.by_shard {
            let socket = SockRef::from(&sockets[0]);
            socket.set_nonblocking(true).unwrap();
            let (accepted, _) = socket.accept().expect("200 connections leave none of 5 listeners out");
            assert!(accepted.tcp_nodelay().unwrap());
            assert_eq!(accepted.tcp_notsent_lowat().unwrap(), Limits::default().unsent_bytes_max);
            let timeout_ms = accepted.tcp_user_timeout().unwrap().map(|timeout| timeout.as_millis() as u64);
            assert_eq!(timeout_ms, Some(Limits::default().tcp_user_timeout_ms));
        }
    }

    #[test]
    fn of_many_shards_the_first_of_each_core_listen() {
        assert_eq!((accepting(1, 2), accepting(16, 2), accepting(54, 2), accepting(54, 1)), (1, 16, 16, 8));
        let shards = 1_024;
        let listeners = bind(&[any()], shards).unwrap();
        assert_eq!(listeners.by_shard.len(), usize::from(shards));
        let listening = listeners.by_shard.iter().take_while(|sockets| sockets.len() == 1).count();
        assert!(listening >= ACCEPTING_PER_CORE);
        assert!(listeners.by_shard[listening..].iter().all(Vec::is_empty));
    }

    #[test]
    fn a_second_gateway_does_not_share_the_port() {
        let first = bind(&[any()], 2).unwrap();
        let error = bind(&first.addresses, 2).unwrap_err();
        assert!(error.to_string().contains(&format!("{} is already in use", first.addresses[0])), "{error}");
        assert!(listen_alone(first.addresses[0]).is_err());
    }

    #[test]
    fn a_port_of_somebody_else_is_not_taken() {
        let other = listen_alone(any()).unwrap();
        let address = other.local_addr().unwrap();
        assert!(bind(&[address], 1).is_err());
        drop(other);
        assert_eq!(bind(&[address], 3).unwrap().addresses, [address]);
    }

    #[test]
    fn a_place_for_both_families_is_reached_by_either() {
        let both = Endpoint { at: At::BothFamilies(0), tls_only: true };
        let listeners = Listeners::bind(&[both], 1, &Limits::default()).unwrap();
        let port = listeners.addresses[0].port();
        assert!(listeners.tls_only == [true] && listeners.in_clear.is_empty());
        assert_eq!(listeners.places, [format!("[::]:{port} for IPv6 and IPv4, TLS only")]);
        for ip in ["127.0.0.1", "::1"] {
            TcpStream::connect((ip, port)).expect(ip);
        }
    }

    #[test]
    fn a_unix_socket_takes_the_place_of_one_that_was_left_over_and_of_nothing_else() {
        let folder = std::env::temp_dir().join(format!("trunkline-listeners-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("socket");
        let bind =
            || Listeners::bind(&[Endpoint { at: At::Unix(path.clone()), tls_only: false }], 3, &Limits::default());
        let first = bind().unwrap();
        assert!(first.addresses.is_empty() && first.by_shard.iter().all(|sockets| sockets.len() == 1));
        UnixStream::connect(&path).unwrap();
        let error = bind().unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("socket"), "{error}");
        drop(first);
        assert!(!fs::exists(&path).unwrap(), "it goes with its listeners");
        // As a process that was killed leaves it behind.
        let mut killed = bind().unwrap();
        std::mem::take(&mut killed.files).into_iter().for_each(std::mem::forget);
        drop(killed);
        let next = bind().unwrap();
        // Somebody else's file is not touched.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "not a socket").unwrap();
        drop(next);
        assert_eq!(fs::read(&path).unwrap(), b"not a socket");
        fs::write(&path, "not a socket").unwrap();
        assert!(bind().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"not a socket");
        // Another process listens, and takes no more connections: it is there all the same.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        SockRef::from(&other).listen(0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(bind().unwrap_err().to_string().contains("in use"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        // 192.0.2.0/24 is for documentation and on no machine.
        let error = bind(&["192.0.2.1:7700".parse().unwrap()], 1).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:7700 is not an address of this machine"), "{error}");
    }
}
