import { type Access, FREE, READS } from './access.ts';
import type { Attentions } from './attention.ts';
import {
  admitsRegistrants,
  isAllRegistrants,
  isWriteExclusive,
  NO_RESERVATIONS,
  type Registration,
  type ReservationState,
  type ReservationStore,
} from './reservation-state.ts';
import {
  CheckCondition,
  INSUFFICIENT_REGISTRATION_RESOURCES,
  INVALID_RELEASE,
  invalidParameter,
  REGISTRATIONS_PREEMPTED,
  RESERVATIONS_PREEMPTED,
  RESERVATIONS_RELEASED,
} from './sense.ts';
import type { Nexus } from './task.ts';
import { isPort } from './transport-id.ts';

/** Ends a command with RESERVATION CONFLICT. */
export class ReservationConflict extends Error {}

/** A key of zeros: none. */
export const NO_KEY = '0000000000000000';

const MAX_REGISTRATIONS = 256;

/** What REGISTER and REGISTER AND IGNORE EXISTING KEY want. */
export interface RegisterRequest {
  /** The nexus' present key; undefined: whatever it is. */
  key: string | undefined;
  newKey: string;
  persist: boolean;
  allTargetPorts: boolean;
  /** SPEC_I_PT: further ports to register. */
  ports: readonly { port: string; transportId: Uint8Array }[];
}

export interface MoveRequest {
  key: string;
  newKey: string;
  persist: boolean;
  unregister: boolean;
  port: string;
  transportId: Uint8Array;
  relativeTargetPort: number;
}

/**
 * RESERVE(6) and persistent reservations of one logical unit (SPC-2 section 5.5.1, SPC-4 section 5.13).
 *
 * The operations throw ReservationConflict or CheckCondition and leave everything as it was then; a promise means that the state is
 * being saved.
 */
export class Reservations {
  /** Some command of some nexus conflicts: false lets a command pass without a look. */
  engaged = false;
  #state: ReservationState;
  /** Nexus id that holds RESERVE(6). */
  #holder6: number | undefined;
  readonly #attentions: Attentions;
  readonly #store: ReservationStore | undefined;
  /** Registration per nexus id, found once per change. */
  readonly #found = new Map<number, number>();
  #saving: Promise<void> | undefined;

  constructor(attentions: Attentions, store: ReservationStore | undefined) {
    this.#attentions = attentions;
    this.#store = store;
    this.#state = store?.initial ?? NO_RESERVATIONS;
    this.#engage();
  }

  get state(): ReservationState {
    return this.#state;
  }

  /** APTPL can be had. */
  get persistent(): boolean {
    return this.#store !== undefined;
  }

  get reserved6(): boolean {
    return this.#holder6 !== undefined;
  }

  /** Whether a command from this nexus has to end with RESERVATION CONFLICT. */
  conflicts(nexus: Nexus, access: Access, free6: boolean): boolean {
    if (this.#holder6 !== undefined) return this.#holder6 !== nexus.id && !free6;
    const { type } = this.#state;
    if (type === 0 || access === FREE) return false;
    if (access === READS && isWriteExclusive(type)) return false;
    const index = this.#indexOf(nexus);
    return index < 0 || !(admitsRegistrants(type) || index === this.#state.holder);
  }

  registrationOf(nexus: Nexus): Registration | undefined {
    return this.#state.registrations[this.#indexOf(nexus)];
  }

  /** Runs an operation after those before it have been saved. */
  perform(operation: () => Promise<void> | undefined): Promise<void> | undefined {
    if (this.#saving === undefined) return operation();
    return this.#saving.then(() => this.perform(operation));
  }

  /** RESERVE(6) and (10). With persistent registrations: as compatible reservation handling (CRH) says. */
  reserve6(nexus: Nexus): void {
    if (this.#state.registrations.length > 0) {
      this.#compatible(nexus);
      return;
    }
    if (this.#holder6 !== undefined && this.#holder6 !== nexus.id) throw new ReservationConflict();
    this.#holder6 = nexus.id;
    this.#engage();
  }

  /** RELEASE(6) and (10). Without a nexus: whoever holds it, as after a reset. */
  release6(nexus?: Nexus): void {
    if (nexus !== undefined && this.#state.registrations.length > 0) {
      this.#compatible(nexus);
      return;
    }
    if (nexus !== undefined && this.#holder6 !== nexus.id) return;
    this.#holder6 = undefined;
    this.#engage();
  }

  /** The nexus is gone: RESERVE(6) ends, persistent reservations stay. */
  drop(nexus: Nexus): void {
    if (this.#holder6 === nexus.id) this.release6();
    this.#found.delete(nexus.id);
  }

  register(nexus: Nexus, request: RegisterRequest): Promise<void> | undefined {
    const { registrations } = this.#state;
    const index = this.#indexOf(nexus);
    const current = registrations[index];
    if (request.key !== undefined && request.key !== (current?.key ?? NO_KEY)) throw new ReservationConflict();
    if (request.newKey === NO_KEY) {
      if (current !== undefined) return this.#unregister(index, request.persist);
      return undefined; // neither registered nor registering: GOOD without effect
    }

    const relativeTargetPort = request.allTargetPorts ? 0 : nexus.relativeTargetPort;
    const next = registrations.slice();
    if (current !== undefined) {
      next[index] = { ...current, key: request.newKey };
    } else {
      const own = { port: nexus.initiatorPort.toLowerCase(), transportId: nexus.transportId };
      for (const { port, transportId } of [own, ...request.ports]) {
        const same = next.findIndex((other) => other.port === port && other.relativeTargetPort === relativeTargetPort);
        if (same < 0) next.push({ port, transportId, relativeTargetPort, key: request.newKey });
      }
    }
    if (next.length > MAX_REGISTRATIONS) throw new CheckCondition(INSUFFICIENT_REGISTRATION_RESOURCES);
    return this.#commit({ ...this.#counted(), registrations: next, persist: request.persist });
  }

  reserve(nexus: Nexus, key: string, type: number): Promise<void> | undefined {
    const index = this.#registered(nexus, key);
    const state = this.#state;
    const holder = isAllRegistrants(type) ? -1 : index;
    if (state.type === 0) return this.#commit({ ...state, type, holder });
    if (state.type !== type || state.holder !== holder) throw new ReservationConflict();
    return undefined;
  }

  release(nexus: Nexus, key: string, type: number): Promise<void> | undefined {
    const index = this.#registered(nexus, key);
    const state = this.#state;
    if (state.type === 0 || !this.#holds(index)) return undefined;
    if (state.type !== type) throw new CheckCondition(INVALID_RELEASE);
    const { registrations } = state;
    return this.#commit({ ...state, type: 0, holder: -1 }, () => {
      if (admitsRegistrants(type)) this.#tell(registrations, RESERVATIONS_RELEASED, nexus);
    });
  }

  clear(nexus: Nexus, key: string): Promise<void> | undefined {
    this.#registered(nexus, key);
    const { registrations } = this.#state;
    return this.#commit({ ...this.#counted(), registrations: [], type: 0, holder: -1 }, () =>
      this.#tell(registrations, RESERVATIONS_PREEMPTED, nexus),
    );
  }

  /**
   * PREEMPT. @param target the key whose registrations go; zeros with an all-registrants reservation: all others
   * @param preempted is called with the nexuses that lost their registration
   */
  preempt(
    nexus: Nexus,
    key: string,
    target: string,
    type: number,
    preempted: (nexuses: Nexus[]) => void,
  ): Promise<void> | undefined {
    const own = this.#registered(nexus, key);
    const state = this.#state;
    const { registrations } = state;
    const everyone = target === NO_KEY;
    if (everyone && !isAllRegistrants(state.type)) throw invalidParameter(8);
    const goes = (index: number): boolean =>
      index !== own && (everyone || (registrations[index] as Registration).key === target);
    const takesReservation = everyone || (state.holder >= 0 && registrations[state.holder]?.key === target);
    if (!takesReservation && !registrations.some((registration) => registration.key === target))
      throw new ReservationConflict();

    const gone = registrations.filter((_, index) => goes(index));
    const kept = registrations.filter((_, index) => !goes(index));
    const self = kept.indexOf(registrations[own] as Registration);
    const next = { ...this.#counted(), registrations: kept };
    if (takesReservation) {
      next.type = type;
      next.holder = isAllRegistrants(type) ? -1 : self;
    } else if (state.holder >= 0) {
      next.holder = kept.indexOf(registrations[state.holder] as Registration);
    }
    return this.#commit(next, () => {
      const lost = this.#nexusesOf(gone, nexus);
      for (const other of lost) this.#attentions.raise(other, REGISTRATIONS_PREEMPTED);
      if (takesReservation && state.type !== 0 && state.type !== type) this.#tell(kept, RESERVATIONS_RELEASED, nexus);
      preempted(lost);
    });
  }

  move(nexus: Nexus, request: MoveRequest): Promise<void> | undefined {
    const own = this.#registered(nexus, request.key);
    const state = this.#state;
    if (state.type === 0 || isAllRegistrants(state.type) || state.holder !== own) throw new ReservationConflict();
    if (request.newKey === NO_KEY) throw invalidParameter(8);
    const { port, transportId, relativeTargetPort, newKey: key } = request;
    if (isPort(port, nexus) && relativeTargetPort === nexus.relativeTargetPort) throw invalidParameter(24);

    const moved: Registration = { port, transportId, relativeTargetPort, key };
    let kept = state.registrations.filter(
      (other) =>
        other.port !== port || (other.relativeTargetPort !== 0 && other.relativeTargetPort !== relativeTargetPort),
    );
    if (request.unregister) kept = kept.filter((other) => other !== state.registrations[own]);
    if (kept.length >= MAX_REGISTRATIONS) throw new CheckCondition(INSUFFICIENT_REGISTRATION_RESOURCES);
    const next = { ...this.#counted(), registrations: [...kept, moved], persist: request.persist };
    return this.#commit({ ...next, holder: kept.length });
  }

  #unregister(index: number, persist: boolean): Promise<void> | undefined {
    const state = this.#state;
    const registrations = state.registrations.filter((_, other) => other !== index);
    const ends =
      state.type !== 0 && (isAllRegistrants(state.type) ? registrations.length === 0 : state.holder === index);
    const next = { ...this.#counted(), registrations, persist };
    if (ends) {
      next.type = 0;
      next.holder = -1;
    } else if (state.holder >= 0) {
      next.holder = registrations.indexOf(state.registrations[state.holder] as Registration);
    }
    return this.#commit(next, () => {
      if (ends && admitsRegistrants(state.type)) this.#tell(registrations, RESERVATIONS_RELEASED);
    });
  }

  /** RESERVE and RELEASE of SPC-2 while there are persistent registrations: nothing happens for who has access, others conflict. */
  #compatible(nexus: Nexus): void {
    const index = this.#indexOf(nexus);
    const { type } = this.#state;
    if (index < 0 || type === 0 || !(admitsRegistrants(type) || this.#holds(index))) throw new ReservationConflict();
  }

  #registered(nexus: Nexus, key: string): number {
    const index = this.#indexOf(nexus);
    if (this.#state.registrations[index]?.key !== key) throw new ReservationConflict();
    return index;
  }

  #holds(index: number): boolean {
    return isAllRegistrants(this.#state.type) || this.#state.holder === index;
  }

  #indexOf(nexus: Nexus): number {
    let index = this.#found.get(nexus.id);
    if (index === undefined) {
      index = this.#state.registrations.findIndex((registration) => belongs(registration, nexus));
      this.#found.set(nexus.id, index);
    }
    return index;
  }

  /** The state with the next PRgeneration. */
  #counted(): { -readonly [K in keyof ReservationState]: ReservationState[K] } {
    return { ...this.#state, generation: (this.#state.generation + 1) >>> 0 };
  }

  #commit(next: ReservationState, after?: () => void): Promise<void> | undefined {
    const publish = (): void => {
      this.#state = next;
      this.#found.clear();
      this.#engage();
      after?.();
    };
    if (this.#store === undefined || !(next.persist || this.#state.persist)) {
      publish();
      return undefined;
    }
    const saved = this.#store.save(next).then(publish);
    this.#saving = saved
      .catch(() => undefined) // reported by the command that asked for it
      .finally(() => {
        this.#saving = undefined;
      });
    return saved;
  }

  #engage(): void {
    this.engaged = this.#holder6 !== undefined || this.#state.type !== 0;
  }

  #nexusesOf(registrations: readonly Registration[], except?: Nexus): Nexus[] {
    const nexuses: Nexus[] = [];
    for (const { nexus } of this.#attentions.states()) {
      if (nexus.id !== except?.id && registrations.some((registration) => belongs(registration, nexus)))
        nexuses.push(nexus);
    }
    return nexuses;
  }

  #tell(registrations: readonly Registration[], sense: number, except?: Nexus): void {
    for (const nexus of this.#nexusesOf(registrations, except)) this.#attentions.raise(nexus, sense);
  }
}

function belongs(registration: Registration, nexus: Nexus): boolean {
  const port = registration.relativeTargetPort;
  return (port === 0 || port === nexus.relativeTargetPort) && isPort(registration.port, nexus);
}
