/** A message bus of a test's own, in the place of the system's. */

import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { chmod } from 'node:fs/promises';
import { join } from 'node:path';
import { type RunningProcess, type RunResult, run, start } from './process.ts';
import { requirePrograms, type Skip } from './requires.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

/** Somebody without privilege: nobody. */
const NOBODY = 65534;

export function requiresBus(): Skip {
  return requirePrograms(['dbus-daemon', 'dbus-send'], 'dbus');
}

/** Whoever starts other users' processes is root. */
export function requiresRoot(): Skip {
  return process.getuid?.() === 0 ? false : 'needs root, to be somebody else';
}

export interface BusOptions {
  /** Policies behind one that allows everything: `<policy …>…</policy>` and `<include>`s. */
  readonly policies?: string;
}

/** A bus, and calls to what is on it. Its address is in DBUS_SYSTEM_BUS_ADDRESS of this process until the test ends. */
export class PrivateBus {
  readonly address: string;
  readonly #t: Cleanup;
  readonly #config: string;
  #daemon: RunningProcess | undefined;

  private constructor(t: Cleanup, address: string, config: string) {
    this.#t = t;
    this.address = address;
    this.#config = config;
  }

  static async start(t: Cleanup, { policies = '' }: BusOptions = {}): Promise<PrivateBus> {
    const directory = await temporaryDirectory(t);
    // Others than the test's user call, too.
    await chmod(directory, 0o755);
    const address = `unix:path=${join(directory, 'bus')}`;
    const config = join(directory, 'bus.conf');
    writeFileSync(
      config,
      `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>${address}</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow send_type="method_call"/>
    <allow receive_sender="*"/>
  </policy>
  ${policies}
</busconfig>
`,
    );
    const bus = new PrivateBus(t, address, config);
    const before = process.env.DBUS_SYSTEM_BUS_ADDRESS;
    process.env.DBUS_SYSTEM_BUS_ADDRESS = address;
    t.after(() => {
      if (before === undefined) delete process.env.DBUS_SYSTEM_BUS_ADDRESS;
      else process.env.DBUS_SYSTEM_BUS_ADDRESS = before;
    });
    await bus.begin();
    return bus;
  }

  /** Starts the bus, again after end(), at the same address. */
  async begin(): Promise<void> {
    const args = [`--config-file=${this.#config}`, '--nofork', '--nopidfile', '--print-address'];
    this.#daemon = start(this.#t, 'dbus-daemon', args);
    await this.#daemon.waitForLine(/^unix:/);
  }

  /** Ends the bus as a crash does. */
  async end(): Promise<void> {
    const child = this.#daemon?.child;
    if (child === undefined) return;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  }

  /** Calls a method, as `dbus-send` takes arguments: `string:x`, `uint64:1`. What it prints is the answer or the error. */
  call(
    destination: string,
    path: string,
    method: string,
    args: readonly string[] = [],
    { asNobody = false }: { asNobody?: boolean } = {},
  ): Promise<RunResult> {
    const send = [
      'dbus-send',
      `--bus=${this.address}`,
      '--print-reply',
      `--dest=${destination}`,
      path,
      method,
      ...args,
    ];
    const nobody = ['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups'];
    const [program, ...rest] = asNobody ? [...nobody, ...send] : send;
    return run(program as string, rest);
  }
}

/** Waits for something that comes by itself. */
export async function until(holds: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (let left = 600; left > 0; left--) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`in vain waited for: ${what}`);
}
