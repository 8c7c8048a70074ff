import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { delimiter, join } from 'node:path';

/** One thing that this machine has, or not. */
export interface Fact {
  /** Stable name, for JSON. */
  readonly id: string;
  readonly title: string;
  /** `partly`: there is something in its place that does the same, slower or less. */
  readonly state: 'yes' | 'partly' | 'no';
  /** What was found, or why not. */
  readonly detail: string;
  /** What it is good for and the way to get it. Only where something is missing. */
  readonly help?: string;
}

/** The first of the directories on PATH, or of the system's sbin directories, that has a program. */
export function findProgram(name: string, path: string | undefined): string | undefined {
  // An ordinary user's PATH lacks the sbin directories, where modprobe and others live.
  const directories = [...(path ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin'];
  return directories
    .filter((directory) => directory !== '')
    .map((directory) => join(directory, name))
    .find((file) => {
      try {
        accessSync(file, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

export function programFact(name: string, path: string | undefined, use: string, debianPackage: string): Fact {
  const found = findProgram(name, path);
  if (found !== undefined) return { id: name, title: name, state: 'yes', detail: found };
  return { id: name, title: name, state: 'no', detail: 'not on PATH', help: `${use}: apt install ${debianPackage}` };
}

/** Whether a kernel module is loaded, built in, or there to be loaded. */
export function moduleFact(name: string, use: string): Fact {
  const base = { id: name, title: `module ${name}` };
  if (existsSync(`/sys/module/${name}`)) return { ...base, state: 'yes', detail: 'loaded' };
  const folder = `/lib/modules/${release()}`;
  if (mentions(`${folder}/modules.builtin`, name)) return { ...base, state: 'yes', detail: 'built into the kernel' };
  if (mentions(`${folder}/modules.dep`, name)) {
    return { ...base, state: 'partly', detail: 'there, not loaded', help: `${use}: as root, modprobe ${name}` };
  }
  return {
    ...base,
    state: 'no',
    detail: `not for this kernel (${release()})`,
    help: `${use}: needs a kernel with CONFIG_TARGET_CORE and CONFIG_TCM_USER2, as Debian's linux-image-amd64 has (not the cloud one)`,
  };
}

/** modules.dep and modules.builtin name files: kernel/drivers/target/target_core_user.ko[.xz]. */
function mentions(list: string, name: string): boolean {
  const file = new RegExp(`/${name.replace(/_/g, '[-_]')}\\.ko`, 'm');
  return file.test(readText(list));
}

export function configfsFact(): Fact {
  const base = { id: 'configfs', title: 'configfs' };
  if (existsSync('/sys/kernel/config/target'))
    return { ...base, state: 'yes', detail: 'mounted, with the target in it' };
  if (/^\S+ \/sys\/kernel\/config configfs /m.test(readText('/proc/mounts'))) {
    return {
      ...base,
      state: 'partly',
      detail: 'mounted, the target is not in it',
      help: 'LIO: as root, modprobe target_core_mod',
    };
  }
  return {
    ...base,
    state: 'no',
    detail: 'not mounted',
    help: 'LIO: as root, mount -t configfs none /sys/kernel/config',
  };
}

export function systemBusFact(env: Readonly<Record<string, string | undefined>>): Fact {
  const base = { id: 'dbus', title: 'D-Bus system bus' };
  const address = env.DBUS_SYSTEM_BUS_ADDRESS;
  const socket = address === undefined ? '/run/dbus/system_bus_socket' : /path=([^,;]+)/.exec(address)?.[1];
  if (socket !== undefined && existsSync(socket)) return { ...base, state: 'yes', detail: socket };
  return {
    ...base,
    state: 'no',
    detail: `no socket at ${socket ?? address}`,
    help: 'targetcli talks to us over it: apt install dbus',
  };
}

/** io_uring is looked at, not used: file I/O goes through a pool of threads. */
export function ioUringFact(): Fact {
  const base = { id: 'io_uring', title: 'io_uring' };
  const disabled = readText('/proc/sys/kernel/io_uring_disabled').trim();
  if (disabled === '2') return { ...base, state: 'no', detail: 'switched off (kernel.io_uring_disabled is 2)' };
  if (disabled === '1')
    return { ...base, state: 'partly', detail: 'for privileged processes (kernel.io_uring_disabled is 1)' };
  const [major = 0, minor = 0] = release().split('.').map(Number);
  const has = major > 5 || (major === 5 && minor >= 1);
  return {
    ...base,
    state: has ? 'yes' : 'no',
    detail: `Linux ${release()}; nothing here depends on it`,
  };
}

/** How many descriptors this process may have: each session and each image file takes one. */
export function descriptorsFact(): Fact {
  const limit = /^Max open files\s+(\d+|unlimited)/m.exec(readText('/proc/self/limits'))?.[1] ?? 'unknown';
  const enough = !(Number(limit) < 4096);
  const fact = { id: 'descriptors', title: 'open files', detail: `at most ${limit}` };
  return enough
    ? { ...fact, state: 'yes' }
    : { ...fact, state: 'partly', help: 'many images and sessions: ulimit -n 65536' };
}

/** Other programs' OFD locks can be seen there, and named in messages. */
export function procLocksFact(): Fact {
  const seen = existsSync('/proc/locks');
  return {
    id: 'proc-locks',
    title: 'names of lock holders',
    state: seen ? 'yes' : 'no',
    detail: seen ? '/proc/locks' : 'no /proc: messages about locked images cannot say who holds them',
  };
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
