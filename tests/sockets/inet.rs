//! TCP, UDP and netlink sockets.

use crate::run;
use crate::scene::{DGRAM, STREAM, inet, inet6, words};
use crate::support::{Arg, room};

#[test]
fn internet_sockets() {
    run(|all| {
        let free = |address: &str| {
            let socket = std::net::TcpListener::bind(address).unwrap();
            socket.local_addr().unwrap().port()
        };
        let (port, port6) = (free("127.0.0.1:0"), free("[::1]:0"));
        for (fd, address) in [(10, inet(port)), (11, inet6(port6))] {
            let family = i32::from(u16::from_ne_bytes(address[..2].try_into().unwrap()));
            all.socket("root", fd, family, STREAM | libc::SOCK_NONBLOCK, 0);
            all.set("root", fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &words(&[1]));
            all.set("root", fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &words(&[1]));
            all.set("root", fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &words(&[77]));
            all.set("root", fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &words(&[1]));
            all.named("root", libc::SYS_bind, fd, &address);
            all.stage.must("root", libc::SYS_listen, &[fd.into(), 9.into()]);
            all.socket("root", fd + 10, family, DGRAM, 0);
            all.named("root", libc::SYS_bind, fd + 10, &address);
            all.socket("root", fd + 20, family, DGRAM, 0);
            all.named("root", libc::SYS_connect, fd + 20, &address);
            all.socket("root", fd + 30, family, STREAM, 0);
        }
        all.set("root", 20, libc::IPPROTO_IP, libc::IP_TTL, &words(&[9]));
        all.round_trips();
        for first in [10, 11] {
            all.send("root", first + 20, b"datagram");
            assert_eq!(all.receive("root", first + 10, 100), b"datagram");
        }
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        all.accept("root", 10, 50);
        all.refused("a TCP connection with 127.0.0.1:", &[]);
        let said = all.lossy("--tcp-close");
        assert!(said.contains("lost: process") && said.contains("a TCP connection"), "{said}");
        assert_eq!(all.error("root", 50), -i64::from(libc::ECONNRESET));
        assert_eq!(all.receive("root", 50, 1), b"");
    });
}

#[test]
fn netlink_sockets() {
    run(|all| {
        all.socket("root", 10, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        let address = words(&[libc::AF_NETLINK, 0, 1]);
        all.named("root", libc::SYS_bind, 10, &address);
        all.set("root", 10, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &words(&[5]));
        all.socket("root", 11, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT);
        all.round_trips();
    });
}

#[test]
fn udp_sockets_that_are_shut_down() {
    run(|all| {
        for (fd, how) in [(10, libc::SHUT_RD), (11, libc::SHUT_RDWR)] {
            all.socket("root", fd, libc::AF_INET, DGRAM, 0);
            all.named("root", libc::SYS_connect, fd, &inet(9));
            all.shutdown("root", fd, how);
        }
        all.round_trips();
        for fd in [10, 11] {
            // Not MSG_DONTWAIT, which looks at the queue alone.
            assert_eq!(all.stage.sys("root", libc::SYS_read, &[fd.into(), room(10), 10.into()]).result, 0);
        }
        let sent = all.stage.sys("root", libc::SYS_write, &[11.into(), "x".into(), 1.into()]).result;
        assert_eq!(sent, -i64::from(libc::EPIPE));
    });
}

#[test]
fn what_is_under_way_is_refused() {
    run(|all| {
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = receiver.local_addr().unwrap().port();
        all.socket("root", 10, libc::AF_INET, DGRAM, 0);
        all.named("root", libc::SYS_connect, 10, &inet(port));
        all.set("root", 10, libc::IPPROTO_UDP, libc::UDP_CORK, &words(&[1]));
        all.send("root", 10, b"half a datagram");
        all.refused("a UDP socket with a datagram that is not sent yet", &[]);
        all.set("root", 10, libc::IPPROTO_UDP, libc::UDP_CORK, &words(&[0]));
        // The answer, that nobody is there, comes within the call that sends.
        drop(receiver);
        all.send("root", 10, b"to nobody");
        all.refused("a UDP socket with an error that nobody has been told", &[]);
        assert_eq!(all.error("root", 10), -i64::from(libc::ECONNREFUSED));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        all.socket("root", 11, libc::AF_INET, STREAM, 0);
        all.named("root", libc::SYS_connect, 11, &inet(listener.local_addr().unwrap().port()));
        // Closed with something unread, it resets the connection.
        all.send("root", 11, b"unread");
        drop(listener);
        all.refused("a TCP connection that has ended", &[]);
        assert_eq!(all.error("root", 11), -i64::from(libc::ECONNRESET));
        all.refused("a TCP connection that has ended", &[]);
        all.stage.close("root", 11);
        all.round_trips();
    });
}

/// struct group_req, on the loopback interface.
fn group(address: std::net::IpAddr) -> Vec<u8> {
    let sockaddr = match address {
        std::net::IpAddr::V4(address) => [&words(&[libc::AF_INET])[..], &address.octets()].concat(),
        std::net::IpAddr::V6(address) => [&words(&[libc::AF_INET6, 0])[..], &address.octets()].concat(),
    };
    let mut bytes = [&words(&[1, 0])[..], &sockaddr].concat();
    bytes.resize(136, 0);
    bytes
}

#[test]
fn multicast_groups() {
    const JOIN: i32 = 42;
    const LEAVE: i32 = 45;
    const BLOCK_SOURCE: i32 = 43;
    run(|all| {
        let (v4, v6) = ("239.7.8.9".parse().unwrap(), "ff05::7:8:9".parse().unwrap());
        let members = [(10, libc::AF_INET, libc::IPPROTO_IP, v4), (11, libc::AF_INET6, libc::IPPROTO_IPV6, v6)];
        for (fd, family, level, address) in members {
            all.socket("root", fd, family, DGRAM, 0);
            all.set("root", fd, level, JOIN, &group(address));
            // Not a member of anything.
            all.socket("root", fd + 10, family, DGRAM, 0);
        }
        all.round_trips();
        for (fd, _, level, address) in members {
            let leave = |fd: i32| {
                let value = Arg::In(group(address));
                vec![fd.into(), level.into(), LEAVE.into(), value, 136.into()]
            };
            let left = all.stage.sys("root", libc::SYS_setsockopt, &leave(fd + 10)).result;
            assert_eq!(left, -i64::from(libc::EADDRNOTAVAIL), "it was never a member");
            all.stage.must("root", libc::SYS_setsockopt, &leave(fd));
        }
        all.set("root", 10, libc::IPPROTO_IP, JOIN, &group(v4));
        // struct group_source_req.
        let mut source = [group(v4), words(&[libc::AF_INET]), vec![127, 0, 0, 1]].concat();
        source.resize(264, 0);
        all.set("root", 10, libc::IPPROTO_IP, BLOCK_SOURCE, &source);
        all.refused("with chosen sources in the multicast group 239.7.8.9", &[]);
    });
}
