import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Fact } from './machine.ts';

/** Where dbus-daemon reads policies from (dbus-daemon(1)). */
export const POLICY_DIRECTORIES = [
  '/etc/dbus-1/system.d',
  '/usr/share/dbus-1/system.d',
  '/usr/local/share/dbus-1/system.d',
];

/** The policy that comes with us: this file is two levels below it in the sources, three in dist/. */
function policyFile(): string {
  const candidates = ['../..', '../../..'].map((up) =>
    fileURLToPath(new URL(`${up}/scripts/packaging/org.kernel.TCMUService1.conf`, import.meta.url)),
  );
  return candidates.find((file) => existsSync(file)) ?? 'org.kernel.TCMUService1.conf';
}

/** Whether the bus lets a daemon be what targetcli looks for: without a policy it lets nobody. */
export function busPolicyFact(directories: readonly string[] = POLICY_DIRECTORIES): Fact {
  const base = { id: 'dbus-policy', title: 'D-Bus policy' };
  const allowing = directories.flatMap((directory) =>
    entriesOf(directory)
      .filter((name) => name.endsWith('.conf'))
      .map((name) => join(directory, name))
      .filter((file) => /<allow\s+own(_prefix)?="org\.kernel\.TCMUService1/.test(textOf(file))),
  );
  const install = `install -m 644 ${policyFile()} /etc/dbus-1/system.d/ && systemctl reload dbus`;
  const [first] = allowing;
  if (first === undefined) {
    return {
      ...base,
      state: 'no',
      detail: 'none that lets anybody be org.kernel.TCMUService1',
      help: `targetcli finds the daemon by that name: as root, ${install}`,
    };
  }
  const own = allowing.find((file) => textOf(file).includes('org.lunette.Daemon1'));
  if (own !== undefined) return { ...base, state: 'yes', detail: own };
  return {
    ...base,
    state: 'partly',
    detail: `${first}, of another daemon`,
    help: `lunette status needs org.lunette.Daemon1 as well: as root, ${install}`,
  };
}

/** Who serves TCMU devices: one program can. */
export function tcmuDaemonFact(proc = '/proc'): Fact {
  const base = { id: 'tcmu-daemon', title: 'TCMU daemon' };
  const running = entriesOf(proc)
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => ({ pid, words: textOf(join(proc, pid, 'cmdline')).split('\0') }));
  const other = running.find(({ words: [program = ''] }) => /(^|\/)tcmu-runner$/.test(program));
  if (other !== undefined) {
    return {
      ...base,
      state: 'no',
      detail: `tcmu-runner runs (process ${other.pid})`,
      help: 'only one program can serve TCMU devices: as root, systemctl disable --now tcmu-runner, then systemctl enable --now lunette',
    };
  }
  const ours = running.find(
    ({ words: [program = '', script = '', ...rest] }) =>
      [program, script].some((word) => /(^|\/)(lunette|main\.[jt]s)$/.test(word)) &&
      [script, ...rest].includes('daemon'),
  );
  if (ours !== undefined) return { ...base, state: 'yes', detail: `lunette daemon (process ${ours.pid})` };
  return {
    ...base,
    state: 'partly',
    detail: 'none runs',
    help: 'for disks that targetcli makes: as root, systemctl enable --now lunette, or lunette daemon',
  };
}

function entriesOf(directory: string): string[] {
  try {
    return readdirSync(directory).sort();
  } catch {
    return [];
  }
}

function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
