import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createInterface, type Interface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { LunetteError } from '../../formats/core/errors.ts';
import type { ProvisionEvent } from './provision-child.ts';
import { checkRequest, type TargetRequest } from './request.ts';

/** Where the kernel's target is configured. */
export const CONFIGFS_TARGET = '/sys/kernel/config/target';

/** How long the kernel, and whoever serves TCMU devices, may take before we call it stuck. */
const PATIENCE_MS = 60_000;

const CHILD = fileURLToPath(
  new URL(import.meta.url.endsWith('.ts') ? './provision-child.ts' : './provision-child.js', import.meta.url),
);

/** A target of the kernel that exists until it is closed, or until this process ends, however that happens. */
export class KernelTarget {
  readonly request: TargetRequest;
  /** By LUN: the disk that a unit of a loopback target has become. */
  readonly devices: readonly (string | undefined)[];
  readonly #child: ProvisionChild;

  private constructor(request: TargetRequest, devices: readonly (string | undefined)[], child: ProvisionChild) {
    this.request = request;
    this.devices = devices;
    this.#child = child;
  }

  /**
   * Makes backstores, target, portal, LUNs and ACLs in the kernel. Somebody must serve TCMU devices meanwhile: this process may.
   *
   * @param root of the target's configfs
   * @throws {LunetteError} naming the attribute that did not take its value; nothing is left behind then
   */
  static async create(request: TargetRequest, root = CONFIGFS_TARGET): Promise<KernelTarget> {
    checkRequest(request);
    if (!existsSync(root)) {
      throw new LunetteError('UNAVAILABLE', 'this kernel has no configuration of its SCSI target here', {
        path: root,
        help: 'As root: modprobe target_core_user && mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config',
      });
    }
    const child = new ProvisionChild(root);
    child.send(request);
    const event = await child.next().catch((error: unknown) => {
      child.abandon();
      throw error;
    });
    if (event.event === 'up') return new KernelTarget(request, event.devices, child);
    await child.end();
    if (event.event === 'failed') {
      throw new LunetteError(event.error.code, event.error.message, { path: event.error.path, help: event.error.help });
    }
    throw new LunetteError('INTERNAL', 'the configuration of the target ended before it began');
  }

  /**
   * Takes everything down: commands that run are finished first. Initiators lose the disks.
   *
   * @returns what could not be taken away, in words: mostly because somebody uses it
   */
  async close(): Promise<readonly string[]> {
    return this.#child.end();
  }
}

/** The child process, as a conversation of lines. */
class ProvisionChild {
  readonly #process: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: Interface;
  readonly #events: ProvisionEvent[] = [];
  #wake: (() => void) | undefined;
  #over = false;

  constructor(root: string) {
    // Node's own options (a loader of TypeScript) go with it. A group of its own, so that a Ctrl-C does not reach it.
    const options = process.execArgv.filter(
      (option) => !option.startsWith('--test') && !option.startsWith('--inspect'),
    );
    this.#process = spawn(process.execPath, [...options, CHILD, root], {
      stdio: ['pipe', 'pipe', 'inherit'],
      detached: true,
    });
    this.#process.stdin.on('error', () => undefined);
    this.#process.on('error', () => this.#ended());
    this.#lines = createInterface({ input: this.#process.stdout });
    this.#lines.on('line', (line) => {
      this.#events.push(JSON.parse(line) as ProvisionEvent);
      this.#wake?.();
    });
    this.#lines.on('close', () => this.#ended());
  }

  send(request: TargetRequest): void {
    this.#process.stdin.write(`${JSON.stringify(request)}\n`);
  }

  /** @throws {LunetteError} TIMEOUT when the kernel does not answer; INTERNAL when the process has ended */
  async next(): Promise<ProvisionEvent> {
    const event = this.#events.shift();
    if (event !== undefined) return event;
    if (this.#over) throw new LunetteError('INTERNAL', 'the process that configures the kernel target has ended');
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve, reject) => {
      this.#wake = resolve;
      timer = setTimeout(() => {
        reject(
          new LunetteError('TIMEOUT', `the kernel did not finish configuring its target in ${PATIENCE_MS / 1000} s`, {
            help: 'dmesg says more. The daemon that serves TCMU devices may be stuck, or initiators hold on to a disk.',
          }),
        );
      }, PATIENCE_MS);
    }).finally(() => {
      clearTimeout(timer);
      this.#wake = undefined;
    });
    return this.next();
  }

  /** It takes everything down as soon as the kernel lets it; nobody waits for that. */
  abandon(): void {
    this.#process.stdin.end();
  }

  /** Lets it take everything down and end. @returns what is left */
  async end(): Promise<readonly string[]> {
    this.#process.stdin.end();
    let left: readonly string[] = [];
    for (;;) {
      const event = await this.next();
      if (event.event !== 'down') continue;
      left = event.left;
      break;
    }
    if (!this.#over) await once(this.#lines, 'close');
    return left;
  }

  #ended(): void {
    this.#over = true;
    this.#wake?.();
  }
}
