import type { Nexus } from './task.ts';

/** What a logical unit keeps per I_T nexus. */
export interface NexusState {
  readonly nexus: Nexus;
  /** Packed sense codes of pending unit attentions and deferred errors, oldest first. */
  readonly attentions: number[];
  /** PREVENT ALLOW MEDIUM REMOVAL is in force from this nexus. */
  preventsRemoval: boolean;
  /** What happened to the medium since the nexus asked: for GET EVENT STATUS NOTIFICATION. */
  mediaEvent: MediaEvent;
}

/** Media event codes (MMC-6 table 309). */
export const NO_MEDIA_EVENT = 0;
export const EJECT_REQUEST = 1;
export const NEW_MEDIA = 2;
export const MEDIA_REMOVAL = 3;
export type MediaEvent = 0 | 1 | 2 | 3;

/** A nexus that never asks does not gather more than this. */
const MAX_PENDING = 8;

/**
 * Unit attention conditions of one logical unit, per nexus (SAM-5 section 5.14).
 */
export class Attentions {
  /** Conditions pending over all nexuses: 0 lets a command pass without a look-up. */
  pending = 0;
  readonly #states = new Map<number, NexusState>();

  /** The state of a nexus; made on first sight. */
  of(nexus: Nexus): NexusState {
    let state = this.#states.get(nexus.id);
    if (state === undefined) {
      state = { nexus, attentions: [], preventsRemoval: false, mediaEvent: NO_MEDIA_EVENT };
      this.#states.set(nexus.id, state);
    }
    return state;
  }

  /** All nexuses that the unit knows. */
  states(): IterableIterator<NexusState> {
    return this.#states.values();
  }

  /** Forgets a nexus. */
  drop(nexus: Nexus): void {
    const state = this.#states.get(nexus.id);
    if (state === undefined) return;
    this.pending -= state.attentions.length;
    this.#states.delete(nexus.id);
  }

  /** Establishes a condition for one nexus. What is pending already is not repeated; a reset (29h) replaces everything before it. */
  raise(nexus: Nexus, sense: number): void {
    const queue = this.of(nexus).attentions;
    if (queue.includes(sense)) return;
    if ((sense & 0xff00) === 0x2900) {
      this.pending -= queue.length;
      queue.length = 0;
    } else if (queue.length >= MAX_PENDING) {
      queue.shift();
      this.pending--;
    }
    queue.push(sense);
    this.pending++;
  }

  /** Establishes a condition for all nexuses but one. */
  raiseAll(sense: number, except?: Nexus): void {
    for (const state of this.#states.values()) {
      if (state.nexus.id !== except?.id) this.raise(state.nexus, sense);
    }
  }

  /** Something happened to the medium: the latest is what every nexus will hear. */
  mediaEvent(event: MediaEvent): void {
    for (const state of this.#states.values()) state.mediaEvent = event;
  }

  /** Takes the oldest condition of a nexus; undefined when there is none. */
  take(nexus: Nexus): number | undefined {
    const sense = this.#states.get(nexus.id)?.attentions.shift();
    if (sense !== undefined) this.pending--;
    return sense;
  }

  /** Clears one kind of condition for a nexus. */
  clear(nexus: Nexus, sense: number): void {
    const queue = this.#states.get(nexus.id)?.attentions;
    const at = queue?.indexOf(sense) ?? -1;
    if (queue === undefined || at < 0) return;
    queue.splice(at, 1);
    this.pending--;
  }
}
