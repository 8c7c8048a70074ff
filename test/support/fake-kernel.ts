/** The kernel as TcmuService meets it: configfs in a directory, rings played by the mock kernel, events that a test sends. */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { AnswerChannel, TcmuKernel } from '../../src/daemon/tcmu-kernel.ts';
import type { TcmuUio } from '../../src/lio/uio-devices.ts';
import { UserBackstore } from '../../src/lio/user-backstore.ts';
import type { AwaitedEvent, ChannelListener } from '../../src/netlink/channel.ts';
import type { TcmuEvent } from '../../src/netlink/tcmu-events.ts';
import { MockTcmu } from './mock-tcmu.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

/** A device that there is. */
export interface FakeDevice {
  readonly minor: number;
  readonly uio: TcmuUio;
  readonly ring: MockTcmu;
  /** What was done to it: `block 1`, `reset`, … */
  readonly actions: string[];
}

export class FakeKernel implements TcmuKernel {
  readonly devicesByMinor = new Map<number, FakeDevice>();
  /** Names of devices whose commands cannot be stopped, with the error. */
  readonly unblockable = new Map<string, Error>();
  /** Answers by ticket. */
  readonly answers = new Map<number, number>();
  readonly #t: Cleanup;
  readonly #root: string;
  #listener: ChannelListener | undefined;
  #ticket = 0;
  #refusals = 0;
  /** Sockets that were opened so far. */
  opened = 0;
  /** Those of them that were closed. */
  closed = 0;

  private constructor(t: Cleanup, root: string) {
    this.#t = t;
    this.#root = root;
  }

  static async start(t: Cleanup): Promise<FakeKernel> {
    return new FakeKernel(t, await temporaryDirectory(t));
  }

  /** Makes a device, without telling anybody. */
  async make(minor: number, name: string, config: string, size: number): Promise<FakeDevice> {
    const folder = join(this.#root, 'core', 'user_0', name);
    for (const part of ['attrib', 'action', 'wwn', 'statistics/scsi_dev'])
      mkdirSync(join(folder, part), { recursive: true });
    writeFileSync(join(folder, 'attrib/dev_size'), String(size));
    writeFileSync(join(folder, 'attrib/hw_block_size'), '512');
    writeFileSync(join(folder, 'statistics/scsi_dev/indx'), String(minor + 100));
    const ring = await MockTcmu.start(this.#t);
    const uio = { backstore: { hba: 0, name, config }, node: `/fake/uio${minor}`, regionSize: ring.regionSize };
    const device = { minor, uio, ring, actions: [] };
    this.devicesByMinor.set(minor, device);
    return device;
  }

  /** Tells of a device. @returns the ticket of the event */
  tell(event: { kind: 'added' | 'removed' } | { kind: 'reconfigured'; size: number }, device: FakeDevice): number {
    const { hba, name, config } = device.uio.backstore;
    const base = { deviceId: device.minor + 100, minor: device.minor, name: `tcm-user/${hba}/${name}/${config}` };
    const told: TcmuEvent =
      event.kind === 'reconfigured'
        ? { ...base, kind: 'reconfigured', change: { size: event.size } }
        : { ...base, kind: event.kind };
    const awaited: AwaitedEvent = { ...told, ticket: ++this.#ticket };
    this.#listener?.event(awaited);
    return awaited.ticket;
  }

  /** Events were lost, as on ENOBUFS. */
  overflow(): void {
    this.#listener?.overflow();
  }

  /** The socket fails, and opening another one fails so often. */
  failSocket(errno: number, refusals: number): void {
    const listener = this.#listener;
    this.#listener = undefined;
    this.#refusals = refusals;
    listener?.failed(errno);
  }

  // --- what the service asks ---

  isLoaded = (): boolean => true;

  async takeLock(): Promise<{ release(): void }> {
    return { release: () => undefined };
  }

  channel(listener: ChannelListener): AnswerChannel {
    if (this.#refusals > 0) {
      this.#refusals--;
      throw Object.assign(new Error('ENOMEM'), { code: 'ENOMEM' });
    }
    this.opened++;
    this.#listener = listener;
    return {
      answer: ({ ticket }, status) => {
        if (this.#listener !== listener) return false;
        if (this.answers.has(ticket)) return false;
        this.answers.set(ticket, status);
        return true;
      },
      leave: () => undefined,
      answerMissedAdd: (deviceId, status) => void this.answers.set(-deviceId, status),
      endAnswering: () => undefined,
      close: () => void this.closed++,
    };
  }

  async blockNetlink(): Promise<void> {}
  async abortNetlinkWaiters(): Promise<void> {}
  async freeNetlinkWaiters(): Promise<void> {}

  async devices(): Promise<TcmuUio[]> {
    return [...this.devicesByMinor.values()].map(({ uio }) => uio);
  }

  async device(minor: number): Promise<TcmuUio | undefined> {
    return this.devicesByMinor.get(minor)?.uio;
  }

  backstore(name: { readonly hba: number; readonly name: string }): UserBackstore {
    const find = (): FakeDevice | undefined =>
      [...this.devicesByMinor.values()].find(({ uio }) => uio.backstore.name === name.name);
    const store = new UserBackstore(name, this.#root);
    store.block = async (blocked) => {
      const error = this.unblockable.get(name.name);
      if (error !== undefined) throw error;
      find()?.actions.push(`block ${blocked ? 1 : 0}`);
      return true;
    };
    store.resetRing = async () => {
      const device = find();
      device?.actions.push('reset');
      await device?.ring.reset();
      return true;
    };
    return store;
  }

  open(uio: TcmuUio): { memoryFd: number; eventFd: number; kickFd: number; close(): void } {
    const device = [...this.devicesByMinor.values()].find((each) => each.uio.node === uio.node);
    if (device === undefined) throw new Error(`there is no ${uio.node}`);
    const { memoryFd, eventFd, kickFd } = device.ring;
    return { memoryFd, eventFd, kickFd, close: () => undefined };
  }
}
