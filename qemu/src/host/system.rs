//! Which system this is, as far as its package manager goes.

/// A family of systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// Debian, Ubuntu and what derives from them.
    Debian,
    /// Fedora, RHEL and relatives.
    Fedora,
    /// Arch Linux and relatives.
    Arch,
    /// openSUSE and SLE.
    Suse,
    /// NixOS.
    Nix,
    /// macOS with Homebrew.
    Mac,
    /// Anything else.
    Unknown,
}

/// The fields of `os-release` that matter here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Release {
    /// `ID`
    pub id: String,
    /// `ID_LIKE`
    pub like: String,
    /// `VERSION_CODENAME`
    pub codename: String,
}

impl Release {
    /// Reads the system's own.
    pub fn read() -> Self {
        ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| std::fs::read_to_string(path).ok())
            .map(|text| Self::parse(&text))
            .unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let field = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map(|value| value.trim().trim_matches(['"', '\'']).to_lowercase())
                .unwrap_or_default()
        };
        Self {
            id: field("ID"),
            like: field("ID_LIKE"),
            codename: field("VERSION_CODENAME"),
        }
    }
}

impl System {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Debian,
        Self::Fedora,
        Self::Arch,
        Self::Suse,
        Self::Nix,
        Self::Mac,
        Self::Unknown,
    ];

    /// The one this program runs on.
    pub fn current() -> Self {
        if std::env::consts::OS == "macos" {
            return Self::Mac;
        }
        Self::of(&Release::read())
    }

    fn of(release: &Release) -> Self {
        let is = |names: &[&str]| {
            std::iter::once(release.id.as_str())
                .chain(release.like.split_whitespace())
                .any(|id| names.contains(&id))
        };
        if is(&["debian", "ubuntu"]) {
            Self::Debian
        } else if is(&["fedora", "rhel", "centos"]) {
            Self::Fedora
        } else if is(&["arch"]) {
            Self::Arch
        } else if is(&["suse", "opensuse"]) {
            Self::Suse
        } else if is(&["nixos"]) {
            Self::Nix
        } else {
            Self::Unknown
        }
    }

    /// The command that installs packages, for the user to type.
    pub fn install_command(self, packages: &[&str]) -> String {
        let list = packages.join(" ");
        match self {
            Self::Debian => format!("sudo apt-get install {list}"),
            Self::Fedora => format!("sudo dnf install {list}"),
            Self::Arch => format!("sudo pacman -S {list}"),
            Self::Suse => format!("sudo zypper install {list}"),
            Self::Nix => format!("nix-shell -p {list}"),
            Self::Mac => format!("brew install {list}"),
            Self::Unknown => format!("install with your package manager: {list}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        let system = |text: &str| System::of(&Release::parse(text));
        assert_eq!(
            system("ID=debian\nVERSION_CODENAME=bookworm\n"),
            System::Debian
        );
        assert_eq!(
            system("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"),
            System::Debian
        );
        assert_eq!(system("ID=fedora"), System::Fedora);
        assert_eq!(
            system("ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\""),
            System::Suse
        );
        assert_eq!(system("ID=archlinux\nID_LIKE=arch"), System::Arch);
        assert_eq!(system("ID=nixos"), System::Nix);
        assert_eq!(system(""), System::Unknown);
        assert_eq!(
            Release::parse("VERSION_CODENAME=bookworm").codename,
            "bookworm"
        );
    }
}
